"""Subscribers of the guard that tell: the run file and the console, each fed with one observation a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stepguard.recover.decision import Decision
from stepguard.recover.recovery import Observation
from stepguard.report.console import ConsoleReporter
from stepguard.report.diagnosis import Diagnosis, diagnose
from stepguard.report.findings import Past
from stepguard.report.summary import AttemptSummary, count_alerts
from stepguard.report.words import short_deed
from stepguard.rules.alert import Change
from stepguard.rules.rule import Rule
from stepguard.series.runfile import RunWriter
from stepguard.signals import METRIC

_EACH = 3
"""How many of what is told over and over are told each."""


class Recorder:
    """Writes what the guard saw and decided to a run file."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._has_layers = False

    def __call__(self, observation: Observation, found: Sequence[Diagnosis] = ()) -> None:
        """Record one step: all of it, or nothing of it where the process is killed meanwhile.

        Of the diagnoses that were `found` only the causes are told nowhere else.
        """
        with self._writer.together():
            if not self._has_layers:
                self._writer.layers(observation.layers)
                self._has_layers = True
            self._writer.frame(observation.frame)
            for kind, data in _events(observation):
                self._writer.event(kind, observation.frame.step, data)
            for diagnosis in found:
                if diagnosis.causes:
                    data = {"rule": diagnosis.rule, "causes": list(diagnosis.causes)}
                    self._writer.event("causes", observation.frame.step, data)


def _events(observation: Observation) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What happened at a step, by kind."""
    for change in observation.changes:
        yield "change", as_json(change)
    if observation.decision is not None:
        yield "decision", as_json(observation.decision)
    for rule in observation.cured:
        yield "cured", {"rule": rule}
    for rule in observation.failed:
        yield "not recovered", {"rule": rule}


class Tally:
    """Counts what the closing summary of an attempt needs."""

    def __init__(self, number: int, info: Mapping[str, float | str | None]) -> None:
        self._number, self._info = number, info
        self.steps = 0
        """Steps seen so far."""
        self._loss: float | None = None
        self._metrics: dict[str, float] = {}
        self._changes: list[Change] = []
        self._decisions: list[Decision] = []

    def __call__(self, observation: Observation) -> None:
        """Count one step."""
        self.steps += 1
        scalars = observation.frame.scalars
        self._loss = scalars.get("loss", self._loss)
        self.log({name: value for name, value in scalars.items() if name.startswith(METRIC)})
        self._changes += (change for change in observation.changes if change.state == "firing")
        if observation.decision is not None:
            self._decisions.append(observation.decision)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Take over what the user logged."""
        self._metrics |= {name.removeprefix(METRIC): value for name, value in metrics.items()}

    def summary(self, outcome: str) -> AttemptSummary:
        """What became of the attempt."""
        return AttemptSummary(
            number=self._number,
            steps=self.steps,
            outcome=outcome,
            info=self._info,
            loss=self._loss,
            metrics=self._metrics,
            alerts=count_alerts(self._changes),
            decisions=tuple(self._decisions),
        )


class Teller:
    """Prints diagnoses and keeps the board of a console up to date."""

    def __init__(self, console: ConsoleReporter) -> None:
        self._console = console
        self._again = Counter[tuple[str, str]]()
        """How often each rule went on to fire, or fired again, and was answered in the same way."""

    def __call__(self, observation: Observation, diagnoses: Sequence[Diagnosis]) -> None:
        """Tell one step."""
        self._console.frame(observation.frame, observation.layers)
        if observation.changes:
            self._console.changes(observation.changes)
        decision = observation.decision
        fresh = {diagnosis.rule for diagnosis in diagnoses}
        again = decision if decision and (decision.rule not in fresh or _would_end_again(decision)) else None
        for diagnosis in diagnoses:
            if again is None or diagnosis.rule != again.rule:
                self._console.diagnosis(diagnosis)
        if again is not None:
            self._tell_again(again, "fires again" if again.rule in fresh else "still fires")
        for rule in observation.cured:
            self._console.note(f"step {observation.frame.step}: {rule} stayed clear: cured")

    def _tell_again(self, decision: Decision, how: str) -> None:
        """Tell what is done once more; where it goes on and on, the first times, the tenth, the hundredth."""
        deed = short_deed(decision)
        self._again[decision.rule, deed] += 1
        times = self._again[decision.rule, deed]
        if times <= _EACH or str(times).strip("0") == "1":
            count = f" ({times} times)" if times > _EACH else ""
            self._console.note(f"step {decision.step}: {decision.rule} {how} -> {deed}{count}")


def _would_end_again(decision: Decision) -> bool:
    """Whether it would have ended the training at an earlier step: what it says has been said in full."""
    return decision.dry_run and decision.kind == "halt" and decision.use > 1


def diagnoses(observation: Observation, rules: Mapping[str, Rule], past: Past) -> list[Diagnosis]:
    """One diagnosis for each rule that began to fire at this step, with what the guard does about it.

    `past` has seen the frame of this step.
    """
    fresh: dict[str, list[Change]] = {}
    for change in observation.changes:
        if change.state == "firing":
            fresh.setdefault(change.rule, []).append(change)
    return [
        diagnose(rules[name], changes, observation.layers, _about(name, observation.decision), past)
        for name, changes in fresh.items()
    ]


def _about(rule: str, decision: Decision | None) -> Decision | None:
    concerned = decision is not None and rule in (decision.rule, *decision.also)
    return decision if concerned else None


def as_json(value: Change | Decision) -> Mapping[str, Any]:
    """A change or a decision as a JSON object of its fields."""
    return _plain(asdict(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
