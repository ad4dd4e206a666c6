"""The ladders of one attempt: frames in, one decision a step out. Live runs and replays share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Alarm, Decision, Standing, decide
from stepguard.rules.alert import Change
from stepguard.signals import Frame, Layer


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


class Recovery:
    """Runs engine and ladders together, frame by frame."""

    def __init__(self, engine: Engine, attempt: Attempt, *, dry_run: bool = False) -> None:
        self.engine = engine
        self.standings: Mapping[str, Standing] = dict(attempt.standings)
        self._attempt = attempt
        self._dry_run = dry_run
        self._rules = {rule.name: rule for rule in engine.rules.rules}
        self._settle = {name: rule.settle for name, rule in self._rules.items()}
        self._latest: dict[str, tuple[str | None, str]] = {}
        """First layer and message of each rule's last alert."""

    def observe(self, frame: Frame) -> Observation:
        """Evaluate all rules at this frame, and decide."""
        changes = self.engine.evaluate(frame)
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
        outcome = decide(frame.step, alarms, self.standings, self._settle, dry_run=self._dry_run)
        self.standings = outcome.standings
        decision = outcome.decision
        if decision is not None and decision.kind == "restart" and not decision.settings:
            decision = replace(decision, settings=self._prescribe(decision.rule))
        return Observation(
            frame, self.engine.layers, tuple(changes), decision, outcome.cured, outcome.notified
        )

    def state_dict(self) -> dict[str, Any]:
        """Windows, alerts and ladders."""
        standings = {name: astuple(standing) for name, standing in self.standings.items()}
        return {"engine": self.engine.state_dict(), "standings": standings, "latest": dict(self._latest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over windows, alerts and ladders."""
        self.engine.load_state_dict(state["engine"])
        self.standings = {name: Standing(*standing) for name, standing in state["standings"].items()}
        self._latest = dict(state["latest"])

    def _prescribe(self, rule: str) -> Mapping[str, float | str]:
        return prescribe(self._rules[rule].condition.subject, self._attempt)


def prescribe(signal: str, attempt: Attempt) -> Mapping[str, float | str]:
    """Choose the remedy of `restart: auto` by what the rule looks at and what was tried before.

    Outputs that go wrong call for another initialisation, gradients and loss for clipping and a lower
    learning rate; what was tried and did not help is followed by the other, then by a learning rate ten times
    lower.
    """
    if attempt.init is None and signal.startswith("act."):
        return {"lr": 0.5, "init": "kaiming"}
    if attempt.clip is None:
        return {"lr": 0.3, "clip": 1.0}
    if attempt.init != "lsuv":
        return {"lr": 0.3, "init": "lsuv"}
    return {"lr": 0.1, "seed": 1}


def _first_layer(change: Change) -> str | None:
    if change.layer is not None or change.evidence is None:
        return change.layer
    return next(iter(change.evidence.layers), None)
