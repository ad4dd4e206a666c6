"""Truth of all conditions at a step, for all layers at once: frames in, truths out. No clock, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.rules.cells import Series
from stepguard.rules.circuit import Circuit
from stepguard.rules.expression import Condition
from stepguard.rules.readings import Readings
from stepguard.rules.screening import Screens, surely_not_true, surely_unknown
from stepguard.rules.stretch import Group, Stretch
from stepguard.rules.tree import CLOCKS, Node
from stepguard.rules.values import Mask, Scalar
from stepguard.rules.watched import Watch, Watched
from stepguard.rules.witness import Witnesses
from stepguard.series.blocks import Block, Column
from stepguard.signals import Frame, signal


class Truth(NamedTuple):
    """What a condition says at a step."""

    holds: NDArray[np.bool_]
    """Of shape () or (layers,); False where it is not known."""
    known: NDArray[np.bool_]
    witnesses: NDArray[np.bool_] | None
    """Of shape (layers,): the layers that make it true. None where no layers are involved."""
    seen: NDArray[np.bool_] | None
    """Of shape (layers,): the layers that it could look at. None where no layers are involved."""


class Fed(NamedTuple):
    """What is known of all conditions once a frame was fed, by their places."""

    may_be_known: frozenset[int]
    """Those that are not surely unknown."""
    may_hold: list[int]
    """Those of which someone asks that may hold; the `truth` of the others does not."""


class Plan(NamedTuple):
    """What there is to do at steps whose frames have the same signals."""

    may_be_known: frozenset[int]
    """The conditions that are not surely unknown, by their places."""
    screens: tuple[tuple[int, Callable[[], bool]], ...]
    """Those of which someone asks that do not surely fail to hold, each with what looks at values."""
    series: tuple[Series, ...]
    """The series that may be known."""
    subjects: tuple[tuple[str, Readings], ...]
    """Those whose readings are kept."""


_MOST_PLANS = 64


class _Attended(NamedTuple):
    """What is wanted for the time being."""

    kept: frozenset[int]
    """The conditions for which windows and readings are kept, by their places."""
    asked: frozenset[int]
    """Those of them of which someone asks whether they may hold."""
    series: tuple[Series, ...]
    """What they look at."""


def _passed(screens: Iterable[tuple[int, Callable[[], bool]]]) -> list[int]:
    passed: list[int] = []
    for watch, screen in screens:
        try:
            if screen():
                passed.append(watch)
        except Exception:
            passed.append(watch)  # the `truth` raises the same
    return passed


class Evaluator:
    """Evaluates conditions step by step.

    What conditions have in common is computed once a step; what windows look at is kept at every step,
    whether a condition is asked for or not. A condition is unknown at a step at which none of its signals
    was measured.
    """

    def __init__(self, watches: Sequence[Watch], layers: int) -> None:
        self._circuit = Circuit(layers)
        self._layers = layers
        self._watched = [Watched(watch, self._circuit) for watch in watches]
        screens = Screens(self._circuit)
        for watched in self._watched:
            watched.may_hold = screens.of(watched.condition.root, watched.mask)
        self._readings = {
            watch.condition.subject: Readings(layers if _per_layer(watch.condition.subject) else None)
            for watch in watches
        }
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
        self._attended = self._everything()

    def _everything(self) -> _Attended:
        watches = frozenset(range(len(self._watched)))
        return _Attended(watches, watches, tuple(self._circuit.series.values()))

    def attend(self, kept: frozenset[int], asked: frozenset[int], step: int) -> None:
        """From this step on keep only what some conditions need, and look only whether some may hold.

        Nobody wants the others again: only a `rewind` and a `load_state_dict` make all of them wanted.
        """
        needed = frozenset[Any]().union(*(self._watched[watch].series for watch in kept))
        series = self._circuit.series.values()
        attended = _Attended(kept, asked, tuple(s for s in series if s in needed and not s.over(step)))
        if attended != self._attended:
            self._attended = attended
            self._plans.clear()

    def feed(self, frame: Frame, progress: float | None) -> Fed:
        """Begin a step; steps ascend, and what was fed is not changed afterwards.

        Never raises for a fault of one condition: its `truth` does.
        """
        signals = tuple(frame.scalars), tuple(frame.vectors)
        plan = self._plans.get(signals) or self._plan(signals)
        with np.errstate(all="ignore"):
            self._circuit.feed(frame, progress, plan.series)
            for name, readings in plan.subjects:
                vector = frame.vectors.get(name)
                readings.push(frame.step, self._circuit.read(name) if vector is None else vector)
            return Fed(plan.may_be_known, _passed(plan.screens))

    def _plan(self, signals: tuple[tuple[str, ...], tuple[str, ...]]) -> Plan:
        there = frozenset((*signals[0], *signals[1]))
        if len(self._plans) == _MOST_PLANS:
            self._plans.clear()
        kept, asked, series = self._attended
        watched = {place: self._watched[place] for place in sorted(kept)}
        fresh = [(place, each) for place, each in watched.items() if each.may_be_fresh(there)]
        may_hold = [(p, w.may_hold) for p, w in fresh if not surely_not_true(w.condition.root, there)]
        subjects = dict.fromkeys(each.condition.subject for each in watched.values())
        plan = self._plans[signals] = Plan(
            frozenset(p for p, w in fresh if not surely_unknown(w.condition.root, there)),
            tuple((place, screen) for place, screen in may_hold if place in asked),
            tuple(each for each in series if not surely_unknown(each.node, there)),
            tuple((name, self._readings[name]) for name in subjects if name in there or name in CLOCKS),
        )
        return plan

    def pass_over(self, block: Block, total_steps: int | None) -> int:
        """Feed the first frames of a block at once, up to that at which a condition may hold; give how many.

        At most, that is: none where frames cannot be looked at together. What is wrong comes out one by one.
        """
        with np.errstate(all="ignore"):
            try:
                parts = block.alike()
                plans = [self._plans.get(signals) or self._plan(signals) for signals, _ in parts]
                groups = [
                    Group(places, frozenset((*scalars, *vectors)), self._roots(plan), plan.series)
                    for ((scalars, vectors), places), plan in zip(parts, plans, strict=True)
                ]
                stretch = Stretch(self._circuit, block, groups, total_steps)
                frames = stretch.quiet()
            except Exception:
                return 0
            stretch.remember(frames)
        passed = block.part(slice(frames))
        for name, readings in dict(subject for plan in plans for subject in plan.subjects).items():
            readings.extend(passed.steps, _column(passed, name, total_steps))
        return frames

    def _roots(self, plan: Plan) -> list[tuple[Node, Mask]]:
        watched = [self._watched[place] for place, _ in plan.screens]
        return [(each.condition.root, each.mask) for each in watched]

    def truth(self, watch: int) -> Truth:
        """Tell whether a condition holds at the step fed last; raises what went wrong inside it."""
        watched = self._watched[watch]
        with np.errstate(all="ignore"):
            fresh = watched.fresh()
            if not fresh.any():
                return self._unknown(watched.condition)
            value = watched.root.get()
            if watched.condition.vector:
                known = value.known & watched.mask & fresh
                holds = value.data & known
                return Truth(holds, known, holds, known)
            return self._of_run(watched, value)

    def _of_run(self, watched: Watched, value: Scalar) -> Truth:
        holds, known = np.asarray(value is True), np.asarray(value is not None)
        if not watched.condition.layered:
            return Truth(holds, known, None, None)
        witnesses = Witnesses(watched.mask, lambda node: self._circuit.cell(node, watched.mask).get())
        if holds:
            witnesses.visit(watched.condition.root, True)
        return Truth(holds, known, witnesses.layers, witnesses.seen)

    def _unknown(self, condition: Condition) -> Truth:
        none = np.zeros(self._layers if condition.vector else (), np.bool_)
        layers = np.zeros(self._layers, np.bool_) if condition.layered else None
        return Truth(none, none, layers, layers)

    def measures(self, watch: int, layer: int | None) -> dict[str, float]:
        """Give what the detectors of a condition measure now, at one layer or for the run."""
        found: dict[str, float] = {}
        for cell in self._watched[watch].detections:
            for name, measured in cell.get().measures.items():
                value = _at(np.asarray(measured), layer)
                if value is not None:
                    found.setdefault(name, value)
        return found

    def value(self, signal: str, layer: int | None) -> float | None:
        """Give a signal at the step fed last, at one layer or for the run; None if it was not measured."""
        if not _per_layer(signal):
            number = self._circuit.read(signal)
            return None if number is None else float(number)
        value = self._circuit.read_layers(signal)
        return float(value.data[layer]) if layer is not None and value.known[layer] else None

    def readings(self, signal: str, layer: int | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Give steps and values of a subject's last readings, NaN where not finite; KeyError for others."""
        if _per_layer(signal) and layer is None:
            return (), ()
        return self._readings[signal].last(layer if _per_layer(signal) else None)

    def rewind(self, step: int, now: int | None = None) -> None:
        """Forget everything after a step; with `now`, windows go on from there as if it were that step."""
        self._circuit.history.rewind(step, now)
        self._renew()
        for readings in self._readings.values():
            readings.rewind(step)

    def _renew(self) -> None:
        self._circuit.renew()
        self._attended = self._everything()
        self._plans.clear()

    def state_dict(self) -> dict[str, Any]:
        """Give everything that is remembered, as plain arrays and containers."""
        readings = {name: readings.state_dict() for name, readings in self._readings.items()}
        return {"history": self._circuit.history.state_dict(), "readings": readings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another evaluator remembered; signals that are new here begin empty."""
        self._circuit.history.load_state_dict(state["history"])
        self._renew()
        for name, readings in self._readings.items():
            if name in state["readings"]:
                readings.load_state_dict(state["readings"][name])


@lru_cache
def _per_layer(name: str) -> bool:
    found = signal(name)
    return found is not None and found.per == "layer"


def _at(measured: NDArray[Any], layer: int | None) -> float | None:
    if measured.ndim and layer is None:
        return None
    value = float(measured[layer] if measured.ndim else measured)
    return None if np.isnan(value) else value


def _column(block: Block, name: str, total_steps: int | None) -> Column:
    """A signal or a clock at each frame."""
    if name not in CLOCKS:
        return block.scalars.get(name) or block.vectors[name]
    clock = block.steps / (1 if name == "step" else total_steps or np.nan)
    there = np.isfinite(clock)
    return Column(clock, there, there)
