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
from stepguard.rules.lifetimes import last_step
from stepguard.rules.message import render
from stepguard.rules.rule import Rule, Ruleset
from stepguard.series.blocks import Block
from stepguard.signals import Frame, Layer

_REVIEW = 100
"""Steps between two looks at which rules are over."""


@dataclass
class _Watched:
    """A rule of this run: its alerts, whether it failed, whether it sleeps for want of `total_steps`."""

    rule: Rule
    states: AlertStates
    start: float
    end: float
    """The steps at which it is awake, both included."""
    last: float
    """The last step at which it may hold; none of its alerts begins later."""
    idle: bool = True
    """None of its alerts is pending or firing."""
    holds: bool = False
    """Its condition was evaluated at this step and holds at a layer that fires."""
    failed: str | None = None

    def awake(self, step: int) -> bool:
        """Whether the rule is evaluated at a step."""
        return self.start <= step <= self.end

    def may_begin(self, step: int) -> bool:
        """Whether the rule is awake with all its alerts inactive."""
        return self.start <= step <= self.last and self.idle and self.failed is None

    def over(self, step: int) -> bool:
        """Whether nothing comes of the rule from a step on."""
        return self.failed is not None or (self.last < step and self.idle)

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
        self._watched = [self._watch(rule) for rule in rules.rules]
        self._review_at = 0.0
        """The step at which it is time to look which rules are over."""
        self._busy: set[int] = set()
        """The rules of which an alert is pending or firing, by their places."""
        self._fresh_failures: list[tuple[str, str]] = []

    def _mask(self, rule: Rule) -> NDArray[np.bool_]:
        return np.array([rule.layers.matches(layer) for layer in self.layers], dtype=np.bool_)

    def _watch(self, rule: Rule) -> _Watched:
        start, end = rule.active.span(self.total_steps)
        last = min(end, last_step(rule.condition.root, self.total_steps))
        return _Watched(rule, self._no_alerts(rule), start, end, last)

    def _no_alerts(self, rule: Rule) -> AlertStates:
        return AlertStates.inactive((len(self.layers),) if rule.condition.vector else ())

    def evaluate(self, frame: Frame) -> list[Change]:
        """Evaluate every rule at this frame; return the alerts that changed, rule by rule, in depth order.

        Steps must come in ascending order, and frames must not be changed afterwards. A rule that fails is
        marked, once in `take_failures`, and left out from then on. Nearly always no rule may hold, which the
        screens in front of the evaluation tell for next to nothing.
        """
        step = frame.step
        if step >= self._review_at:
            self._review(step)
        fed = self._evaluator.feed(frame, step / self.total_steps if self.total_steps else None)
        places = [place for place in fed.may_hold if self._watched[place].may_begin(step)]
        if self._busy:
            places = sorted(self._busy.union(places))
        changes: list[Change] = []
        for index in places:
            watched = self._watched[index]
            try:
                changes += self._advance(index, watched, step, known=index in fed.may_be_known)
            except Exception as fault:
                self._leave_out(index, f"{type(fault).__name__}: {fault}")
        return changes

    def pass_over(self, block: Block) -> int:
        """Evaluate every rule at many frames at once, up to the first at which one may hold; give how many.

        They change no alert: what `evaluate` would give of each is nothing. None where an alert is pending
        or firing, or where frames cannot be looked at together, as where steps do not ascend.
        """
        if self._busy or not len(block) or not (np.diff(block.steps) > 0).all():
            return 0
        step = int(block.steps[0])
        if step >= self._review_at:
            self._review(step)
        wakes = min((each.start for each in self._watched if each.start > step), default=np.inf)
        asleep = slice(int(np.searchsorted(block.steps, wakes)))
        return self._evaluator.pass_over(block.part(asleep), self.total_steps)

    def _review(self, step: int) -> None:
        """Spend nothing more on the rules that are over, and as little as may be on those to come."""
        rules = {place: each for place, each in enumerate(self._watched) if not each.over(step)}
        begun = (place for place, each in rules.items() if each.start <= step)
        self._evaluator.attend(frozenset(rules), frozenset(begun), step)
        to_come = [each.start for each in rules.values() if each.start > step]
        self._review_at = min([step + _REVIEW, *to_come])

    def _leave_out(self, index: int, reason: str) -> None:
        watched = self._watched[index]
        watched.failed = reason
        self._set(index, self._no_alerts(watched.rule))
        self._fresh_failures.append((watched.rule.name, reason))

    def _set(self, index: int, states: AlertStates) -> None:
        watched = self._watched[index]
        watched.set(states)
        (self._busy.discard if watched.idle else self._busy.add)(index)

    def _advance(self, index: int, watched: _Watched, step: int, *, known: bool) -> list[Change]:
        rule, before, awake = watched.rule, watched.states, watched.awake(step)
        watched.holds = False
        if awake and not known:
            return []
        truth = self._evaluator.truth(index) if awake else None
        if watched.idle and (truth is None or not truth.holds.any()):
            return []
        if truth is None:
            shape = before.code.shape
            holds, seen = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
        else:
            holds, seen = truth.holds, truth.known
        after = advance(before, step, holds, seen, rule.hold, rule.keep)
        self._set(index, after)
        watched.holds = bool((holds & seen & (after.code == FIRING)).any())
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

    def rewind(self, step: int, now: int) -> list[Change]:
        """Go on from step `now` as from `step`: forget what came after it; return the alerts that this ends.

        Windows move with it, so that they look at the steps that led to the state that the training is in.
        """
        changes: list[Change] = []
        for index in sorted(self._busy):
            rule, code = self._watched[index].rule, self._watched[index].states.code
            for place in np.flatnonzero(code != INACTIVE):
                name = self.layers[place].name if rule.condition.vector else None
                changes.append(Change(now, rule.name, name, "inactive", rule.severity))
            self._set(index, self._no_alerts(rule))
        self._evaluator.rewind(step, now)
        self._review_at = now
        return changes

    def firing(self) -> frozenset[str]:
        """The rules whose alert is firing at some layer."""
        busy = (self._watched[index] for index in self._busy)
        return frozenset(each.rule.name for each in busy if bool((each.states.code == FIRING).any()))

    def holding(self) -> frozenset[str]:
        """Those of them whose condition was evaluated at the last frame, and holds."""
        busy = (self._watched[index] for index in self._busy)
        return frozenset(each.rule.name for each in busy if each.holds)

    @property
    def quiet(self) -> bool:
        """Whether no alert is pending or firing."""
        return not self._busy

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
        self._review_at = 0
        for index, watched in enumerate(self._watched):
            if watched.rule.name in state["alerts"]:
                self._set(index, AlertStates(*state["alerts"][watched.rule.name]))
