"""The ladders of one attempt: frames in, one decision a step out. Live runs and replays share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Alarm, Decision, Outcome, Standing, decide
from stepguard.recover.prescription import READS, Findings, prescribe
from stepguard.rules.alert import Change
from stepguard.series.blocks import Block
from stepguard.signals import Frame, Layer

LATE = 0.9
"""The progress from which an attempt whose pace is held is no longer ended for another one."""
CALMER = 0.5
"""The same of a challenger: its pace comes down from there on, and its loss has to beat the best one's."""


@dataclass(frozen=True)
class Observation:
    """What the guard saw and decided at one step, as its subscribers get it."""

    frame: Frame
    layers: tuple[Layer, ...]
    changes: tuple[Change, ...]
    decision: Decision | None
    cured: tuple[str, ...] = ()
    """Rules whose alert has stayed clear since an action long enough to call it a cure."""
    notified: tuple[str, ...] = ()
    """Rules that ask for the functions given to `Guard.on_notify`."""
    failed: tuple[str, ...] = ()
    """Rules whose alert still fires `settle` steps after an action: it was no cure."""
    lacking: tuple[str, ...] = ()
    """Rules that would have rolled back, had there been a certified snapshot."""


class Recovery:
    """Runs engine and ladders together, frame by frame."""

    def __init__(
        self,
        engine: Engine,
        attempt: Attempt,
        *,
        dry_run: bool = False,
        back: Callable[[int], int | None] = lambda step: None,
    ) -> None:
        """`back` tells, when a rule wants to roll back at a step, which snapshot there is to go back to."""
        self.engine = engine
        self._due = math.inf
        """The step before which no ladder moves by itself."""
        self._attempt = attempt
        self._dry_run, self._back = dry_run, back
        self._rules = {rule.name: rule for rule in engine.rules.rules}
        self._settle = {name: rule.settle for name, rule in self._rules.items()}
        self._findings = Findings()
        self._latest: dict[str, tuple[str | None, str]] = {}
        """First layer and message of each rule's last alert."""
        self.standings = dict(attempt.standings)

    @property
    def signals(self) -> frozenset[str]:
        """The signals that changes and decisions depend on; whatever else is in a frame is not looked at."""
        return self.engine.rules.signals | READS

    @property
    def standings(self) -> Mapping[str, Standing]:
        """Where the rules stand on their ladders."""
        return self._standings

    @standings.setter
    def standings(self, standings: Mapping[str, Standing]) -> None:
        self._standings = standings
        settled = (
            s.fired + self._settle.get(name, 0) for name, s in standings.items() if s.fired is not None
        )
        self._due = min(settled, default=math.inf)

    @property
    def doubt(self) -> Mapping[str, float | str]:
        """The remedy for an attempt that has ended, and did badly; empty for one that may have done well."""
        curve = self._attempt.curve
        again = self._attempt.number > 1
        doubtful = not self._dry_run and self._findings.doubtful(curve.first, curve.last, again=again)
        return prescribe(self._findings, self._attempt) if doubtful else {}

    def observe(self, frame: Frame) -> Observation:
        """Evaluate all rules at this frame, and decide."""
        return self.happened(frame) or Observation(frame, self.engine.layers, (), None)

    def happened(self, frame: Frame) -> Observation | None:
        """The same; None where nothing happened, as at nearly every frame."""
        self._findings.see(frame)
        changes = self.engine.evaluate(frame)
        if self.engine.quiet and not changes and frame.step < self._due:
            return None
        fresh: dict[str, tuple[str | None, str]] = {}
        for change in changes:
            if change.state == "firing":
                fresh.setdefault(change.rule, (_first_layer(change), change.message))
        self._latest |= fresh
        firing, holding = self.engine.firing(), self.engine.holding()
        alarms = [
            Alarm(rule, name in fresh, name in holding, *self._latest[name])
            for name, rule in self._rules.items()
            if name in firing
        ]
        outcome = self._decide(frame.step, alarms)
        self.standings = outcome.standings
        decision = outcome.decision
        if decision is not None and decision.kind == "restart" and self._goes_to_its_end(frame):
            decision = replace(decision, kind="warn", settings={})
        if decision is not None and decision.to is not None and not decision.dry_run:
            changes += self.engine.rewind(decision.to, frame.step)
        if decision is not None and decision.kind == "restart" and not decision.settings:
            decision = replace(decision, settings=prescribe(self._findings, self._attempt))
        return Observation(
            frame,
            self.engine.layers,
            tuple(changes),
            decision,
            outcome.cured,
            outcome.notified,
            outcome.failed,
            outcome.lacking,
        )

    def pass_over(self, block: Block) -> int:
        """Take in the first frames of a block at which surely nothing happens, at once; give how many."""
        due = len(block) if math.isinf(self._due) else int(np.searchsorted(block.steps, self._due))
        frames = self.engine.pass_over(block.part(slice(due)))
        self._findings.see_all(block.part(slice(frames)))
        return frames

    def _goes_to_its_end(self, frame: Frame) -> bool:
        """Whether a restart would cost more than it can save, while all is finite.

        The pace has come down to a fifth by then and goes on to nothing; what the attempt is worth is told by
        its loss, and others may challenge it. A challenger that comes half-way has had its steps set aside.
        """
        total, least = self.engine.total_steps, LATE if self._attempt.best is None else CALMER
        late = self._attempt.pace is not None and total is not None and frame.step >= least * total
        return late and all(math.isfinite(frame.scalars.get(name, 0.0)) for name in ("loss", "grad_norm"))

    def _decide(self, step: int, alarms: Sequence[Alarm]) -> Outcome:
        climbs = any(action.kind == "rollback" for alarm in alarms for action in alarm.rule.ladder)
        back = self._back(step) if climbs else None
        return decide(step, alarms, self.standings, self._settle, back=back, dry_run=self._dry_run)

    def state_dict(self) -> dict[str, Any]:
        """Windows, alerts, ladders, and what a remedy is made from."""
        standings = {name: astuple(standing) for name, standing in self.standings.items()}
        return {
            "engine": self.engine.state_dict(),
            "standings": standings,
            "latest": dict(self._latest),
            "findings": self._findings.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.engine.load_state_dict(state["engine"])
        self._findings.load_state_dict(state["findings"])
        self.standings = {name: Standing(*standing) for name, standing in state["standings"].items()}
        self._latest = dict(state["latest"])


def _first_layer(change: Change) -> str | None:
    if change.layer is not None or change.evidence is None:
        return change.layer
    return next(iter(change.evidence.layers), None)
