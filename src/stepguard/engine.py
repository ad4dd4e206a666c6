"""One engine for live runs, replays, streams and rule tests: frames in, changes of alerts out.

It knows no clock, no torch and no file. The step comes with the frame, so the same frames give the same
changes wherever they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.rules.alert import FIRING, INACTIVE, STATES, AlertStates, Change, Evidence, advance
from stepguard.rules.evaluate import Evaluator, Truth, Watch
from stepguard.rules.message import render
from stepguard.rules.rule import Rule, Ruleset
from stepguard.signals import Frame, Layer


@dataclass
class _Watched:
    """A rule of this run: its alerts, whether it failed, whether it sleeps for want of `total_steps`."""

    rule: Rule
    states: AlertStates
    idle: bool = True
    """None of its alerts is pending or firing."""
    holds: bool = False
    """Its condition was evaluated at this step and holds at a layer that fires."""
    failed: str | None = None

    def set(self, states: AlertStates) -> None:
        """Take over the alerts' states."""
        self.states, self.holds = states, False
        self.idle = bool((states.code == INACTIVE).all())


class Engine:
    """Evaluates all rules at each frame.

    Args:
        rules: the rules of the run.
        layers: the layers of the frames' vectors, in depth order.
        total_steps: planned length of the run; None leaves rules with percentages asleep.
    """

    def __init__(self, rules: Ruleset, layers: Sequence[Layer], total_steps: int | None = None) -> None:
        self.rules = rules
        self.layers = tuple(layers)
        self.total_steps = total_steps
        masks = [self._mask(rule) for rule in rules.rules]
        watches = [Watch(rule.condition, mask) for rule, mask in zip(rules.rules, masks, strict=True)]
        self._evaluator = Evaluator(watches, len(self.layers))
        self._watched = [_Watched(rule, self._no_alerts(rule)) for rule in rules.rules]
        self._fresh_failures: list[tuple[str, str]] = []

    def _mask(self, rule: Rule) -> NDArray[np.bool_]:
        return np.array([rule.layers.matches(layer) for layer in self.layers], dtype=np.bool_)

    def _no_alerts(self, rule: Rule) -> AlertStates:
        return AlertStates.inactive((len(self.layers),) if rule.condition.vector else ())

    def evaluate(self, frame: Frame) -> list[Change]:
        """Evaluate every rule at this frame; return the alerts that changed, rule by rule, in depth order.

        Steps must come in ascending order. A rule that fails is marked, once in `take_failures`, and left out
        from then on.
        """
        progress = frame.step / self.total_steps if self.total_steps else None
        self._evaluator.feed(frame, progress)
        changes: list[Change] = []
        for index, watched in enumerate(self._watched):
            if watched.failed is None:
                try:
                    changes += self._advance(index, watched, frame.step)
                except Exception as fault:
                    watched.failed = f"{type(fault).__name__}: {fault}"
                    watched.set(self._no_alerts(watched.rule))
                    self._fresh_failures.append((watched.rule.name, watched.failed))
        return changes

    def _advance(self, index: int, watched: _Watched, step: int) -> list[Change]:
        rule, before = watched.rule, watched.states
        truth = self._evaluator.truth(index) if rule.active.covers(step, self.total_steps) else None
        watched.holds = False
        if watched.idle and (truth is None or not truth.holds.any()):
            return []
        if truth is None:
            shape = before.code.shape
            holds, known = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
        else:
            holds, known = truth.holds, truth.known
        after = advance(before, step, holds, known, rule.hold, rule.keep)
        watched.set(after)
        watched.holds = bool((holds & known & (after.code == FIRING)).any())
        changed = np.flatnonzero(after.code != before.code)
        return [self._change(index, truth, step, int(place)) for place in changed]

    def _change(self, index: int, truth: Truth | None, step: int, place: int) -> Change:
        rule, states = self._watched[index].rule, self._watched[index].states
        layer = place if rule.condition.vector else None
        state = STATES[int(states.code.ravel()[place])]
        name = None if layer is None else self.layers[layer].name
        if state != "firing" or truth is None:
            return Change(step, rule.name, name, state, rule.severity)
        evidence = self._evidence(index, rule, truth, layer)
        return Change(
            step, rule.name, name, state, rule.severity, self._message(rule, step, name, evidence), evidence
        )

    def _evidence(self, index: int, rule: Rule, truth: Truth, layer: int | None) -> Evidence:
        witnesses = np.flatnonzero(truth.witnesses) if truth.witnesses is not None else np.array([], np.intp)
        first = layer if layer is not None else int(witnesses[0]) if len(witnesses) else None
        subject = rule.condition.subject
        steps, values = self._evaluator.readings(subject, first)
        return Evidence(
            signal=subject,
            value=self._evaluator.value(subject, first),
            steps=steps,
            values=values,
            measures=self._evaluator.measures(index, first),
            layers=tuple(self.layers[place].name for place in witnesses),
            total=0 if truth.seen is None else int(truth.seen.sum()),
        )

    def _message(self, rule: Rule, step: int, layer: str | None, evidence: Evidence) -> str:
        concerned = len(evidence.layers)
        values: dict[str, float | int | str] = {"step": step, "layers": concerned, "total": evidence.total}
        values |= evidence.measures
        if evidence.value is not None:
            values["value"] = evidence.value
        if evidence.total:
            values["share"] = concerned / evidence.total
        first = layer or next(iter(evidence.layers), None)
        if first is not None:
            values["layer"] = first
        return render(rule.message, values)

    def firing(self) -> frozenset[str]:
        """The rules whose alert is firing at some layer."""
        return frozenset(
            watched.rule.name for watched in self._watched if bool((watched.states.code == FIRING).any())
        )

    def holding(self) -> frozenset[str]:
        """Those of them whose condition was evaluated at the last frame, and holds."""
        return frozenset(watched.rule.name for watched in self._watched if watched.holds)

    @property
    def quiet(self) -> bool:
        """Whether no alert is pending or firing."""
        return all(watched.idle for watched in self._watched)

    def take_failures(self) -> list[tuple[str, str]]:
        """The rules that failed since the last call, with the reason."""
        fresh, self._fresh_failures = self._fresh_failures, []
        return fresh

    def sleeping(self) -> Iterator[Rule]:
        """The rules that cannot wake because they count in percent and `total_steps` is not known."""
        return (rule for rule in self.rules.rules if rule.active.needs_total and self.total_steps is None)

    def state_dict(self) -> dict[str, Any]:
        """Windows and alerts, as plain containers and numpy arrays."""
        alerts = {watched.rule.name: tuple(watched.states) for watched in self._watched}
        return {"windows": self._evaluator.state_dict(), "alerts": alerts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over windows and alerts; rules that the state does not know keep theirs."""
        self._evaluator.load_state_dict(state["windows"])
        for watched in self._watched:
            if watched.rule.name in state["alerts"]:
                watched.set(AlertStates(*state["alerts"][watched.rule.name]))
