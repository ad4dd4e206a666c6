"""What a rule pack would have done to recorded runs: the pack as a whole, and each of its rules alone.

Flow: the frames of a run go once through the engine; the decisions are taken for all rules together and for
each rule for itself, as if the others were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from arena import catalog
from arena.record import Outcome, Recording, path_of
from stepguard.engine import Engine
from stepguard.recover.decision import Alarm, Standing, decide
from stepguard.report.stretches import happenings, stretches
from stepguard.rules.rule import Ruleset
from stepguard.series.blocks import Block
from stepguard.signals import Frame, Vector

STOPS = ("restart", "halt")
_WITH_THE_LOSS = ("loss", "grad_norm", "metric.val_loss", "grad.norm", "grad.rms", "grad.absmax")
_TOLD = ("loss", "lr", "lr_share", "metric.val_loss", "metric.reward", "metric.score", "metric.accuracy")
"""What a step is known by that was not measured."""
View = Callable[[Frame], Frame]
"""How a recorded frame is shown to the rules."""


@dataclass
class Verdict:
    """What rules made of one run."""

    outcome: Outcome
    stopped: int | None = None
    """The first step at which the pack would have ended the attempt."""
    by: str | None = None
    stops: dict[str, int] = field(default_factory=dict[str, int])
    """Of each rule alone."""
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    """How often each rule began to fire, up to the stop."""
    fired: dict[str, int] = field(default_factory=dict[str, int])
    """The step at which each rule first began to fire."""
    broken: int | None = None
    """The first step with a loss that is not finite, or twice its first one."""
    acted: int | None = None
    """The first step at which anything was done to the training: skipped, a lower learning rate, a stop."""


class _Ladder:
    """One rule, or all of them, on their ladders."""

    def __init__(self, settle: Mapping[str, int]) -> None:
        self.settle = settle
        self.standings: Mapping[str, Standing] = {}

    def decide(self, step: int, alarms: list[Alarm]) -> tuple[str, str] | None:
        """The kind of the decision, and its rule."""
        if not alarms and not self.standings:
            return None
        outcome = decide(step, alarms, self.standings, self.settle)
        self.standings = outcome.standings
        return None if outcome.decision is None else (outcome.decision.kind, outcome.decision.rule)

    @property
    def due(self) -> float:
        """The step at which a rule that fires no more goes back to the foot of its ladder."""
        settled = (s.fired + self.settle[name] for name, s in self.standings.items() if s.fired is not None)
        return min(settled, default=float("inf"))


def judge(
    rules: Ruleset,
    outcome: Outcome,
    recording: Recording,
    *,
    total: bool = False,
    view: View | None = None,
    alone: bool = True,
) -> Verdict:
    """Replay one run under rules; `total` says whether the run's length was known.

    Where not asked what each rule does `alone`, the replay ends with the attempt.
    """
    engine = Engine(rules, recording.layers, outcome.steps if total else None)
    settle = {rule.name: rule.settle for rule in rules.rules}
    whole, alone_on = _Ladder(settle), {rule.name: _Ladder(settle) for rule in rules.rules}
    verdict = Verdict(outcome)

    def look(frame: Frame) -> bool:
        """Take in one frame; whether that is all there is to know."""
        changes = engine.evaluate(frame)
        fresh = {change.rule for change in changes if change.state == "firing"}
        for name in fresh:
            verdict.fired.setdefault(name, frame.step)
            if verdict.stopped is None:
                verdict.warnings[name] = verdict.warnings.get(name, 0) + 1
        firing, holding = engine.firing(), engine.holding()
        alarms = [
            Alarm(rule, rule.name in fresh, rule.name in holding)
            for rule in rules.rules
            if rule.name in firing
        ]
        _note(verdict, frame.step, whole.decide(frame.step, alarms))
        for rule in rules.rules if alone else ():
            mine = [alarm for alarm in alarms if alarm.rule is rule]
            taken = alone_on[rule.name].decide(frame.step, mine)
            if taken and taken[0] in STOPS:
                verdict.stops.setdefault(rule.name, frame.step)
        return verdict.stopped is not None and not alone

    def pass_over(block: Block) -> int:
        return engine.pass_over(block.part(slice(int(np.searchsorted(block.steps, whole.due)))))

    for block in stretches(iter([recording.block(rules.signals, view)])):
        if any(happenings(block, pass_over, look)):
            break
    failures = engine.take_failures()
    if failures:
        raise RuntimeError(f"{outcome.scenario}: {failures}")
    verdict.broken = _broken(recording)
    return verdict


def _judge_saved(
    outcome: Outcome, *, packs: Sequence[Ruleset], folder: Path, total: bool, view: View | None, alone: bool
) -> list[Verdict]:
    recording = Recording.load(path_of(folder, outcome.scenario, outcome.seed))
    _tell_accuracy(recording, outcome)
    return [judge(rules, outcome, recording, total=total, view=view, alone=alone) for rules in packs]


def _tell_accuracy(recording: Recording, outcome: Outcome) -> None:
    """Give AUTOTRAINER's conditions the accuracy they ask for: the last score, 0 at chance, 1 at best."""
    accuracy: float | None = None
    for frame in recording.frames:
        if "metric.score" in frame.scalars:
            accuracy = catalog.SCENARIOS[outcome.scenario].normalised(frame.scalars["metric.score"])
        if accuracy is not None:
            frame.scalars["metric.accuracy"] = accuracy


def judge_all(
    packs: Sequence[Ruleset],
    runs: Sequence[Outcome],
    folder: Path,
    *,
    jobs: int,
    total: bool = True,
    view: View | None = None,
    alone: bool = True,
) -> list[list[Verdict]]:
    """Replay recorded runs under some packs, in parallel processes, as `judge` does; pack by pack."""
    work = partial(_judge_saved, packs=packs, folder=folder, total=total, view=view, alone=alone)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(work, runs, chunksize=4))
    return [[verdicts[place] for verdicts in found] for place in range(len(packs))]


def thinned(frame: Frame, *, every: int) -> Frame:
    """The frame as a guard with `every` would make it: between, what is told and non-finite gradients."""
    if frame.step % every == 0:
        return frame
    kept = {name: vector for name, vector in frame.vectors.items() if name == "grad.nonfinite"}
    return Frame(frame.step, {k: v for k, v in frame.scalars.items() if k in _TOLD}, kept)


def unscored(frame: Frame) -> Frame:
    """The frame of a training that logs no score."""
    scalars = {name: value for name, value in frame.scalars.items() if name != "metric.score"}
    return Frame(frame.step, scalars, frame.vectors)


def scaled(frame: Frame, *, by: float) -> Frame:
    """The frame of the same training with its loss times `by`, and its learning rate so much smaller."""
    scalars = {
        name: value * (by if name in _WITH_THE_LOSS else 1 / by if name == "lr" else 1)
        for name, value in frame.scalars.items()
    }
    vectors = {
        name: Vector(vector.values * np.float32(by), vector.known) if name in _WITH_THE_LOSS else vector
        for name, vector in frame.vectors.items()
    }
    return Frame(frame.step, scalars, vectors)


def _note(verdict: Verdict, step: int, taken: tuple[str, str] | None) -> None:
    if taken is None:
        return
    kind, rule = taken
    if verdict.acted is None and kind not in ("warn", "notify", "snapshot"):
        verdict.acted = step
    if verdict.stopped is None and kind in STOPS:
        verdict.stopped, verdict.by = step, rule


def _broken(recording: Recording) -> int | None:
    first = next((f.scalars["loss"] for f in recording.frames if "loss" in f.scalars), None)
    for frame in recording.frames:
        loss = frame.scalars.get("loss")
        if loss is not None and first is not None and not abs(loss) < float("inf"):
            return frame.step
        if loss is not None and first is not None and loss > first + abs(first):
            return frame.step
    return None
