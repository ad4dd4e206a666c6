"""Subscribers of the guard that tell: the run file and the console, each fed with one observation a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stepguard.recover.decision import Decision
from stepguard.recover.recovery import Observation
from stepguard.report.console import ConsoleReporter
from stepguard.report.diagnosis import Diagnosis, diagnose
from stepguard.report.summary import AttemptSummary, count_alerts
from stepguard.report.words import short_deed
from stepguard.rules.alert import Change
from stepguard.rules.rule import Rule
from stepguard.series.runfile import RunWriter
from stepguard.signals import METRIC


class Recorder:
    """Writes what the guard saw and decided to a run file."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._has_layers = False

    def __call__(self, observation: Observation) -> None:
        """Record one step."""
        if not self._has_layers:
            self._writer.layers(observation.layers)
            self._has_layers = True
        step = observation.frame.step
        self._writer.frame(observation.frame)
        for change in observation.changes:
            self._writer.event("change", step, as_json(change))
        if observation.decision is not None:
            self._writer.event("decision", step, as_json(observation.decision))
        for rule in observation.cured:
            self._writer.event("cured", step, {"rule": rule})
        for rule in observation.failed:
            self._writer.event("not recovered", step, {"rule": rule})


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

    def __call__(self, observation: Observation, diagnoses: Sequence[Diagnosis]) -> None:
        """Tell one step."""
        self._console.frame(observation.frame, observation.layers)
        if observation.changes:
            self._console.changes(observation.changes)
        for diagnosis in diagnoses:
            self._console.diagnosis(diagnosis)
        decision = observation.decision
        if decision is not None and decision.rule not in {diagnosis.rule for diagnosis in diagnoses}:
            self._console.note(f"step {decision.step}: {decision.rule} still fires -> {short_deed(decision)}")
        for rule in observation.cured:
            self._console.note(f"step {observation.frame.step}: {rule} stayed clear: cured")


def diagnoses(observation: Observation, rules: Mapping[str, Rule]) -> list[Diagnosis]:
    """One diagnosis for each rule that began to fire at this step, with what the guard does about it."""
    fresh: dict[str, list[Change]] = {}
    for change in observation.changes:
        if change.state == "firing":
            fresh.setdefault(change.rule, []).append(change)
    return [
        diagnose(rules[name], changes, observation.layers, _about(name, observation.decision))
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
