"""Truth of all conditions at a step, for all layers at once: frames in, truths out. No clock, no files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.rules import tree
from stepguard.rules.circuit import Cell, Circuit
from stepguard.rules.expression import Condition
from stepguard.rules.functions import FUNCTIONS, Detector
from stepguard.rules.readings import Readings
from stepguard.rules.tree import CLOCKS, Call, Node, Read
from stepguard.rules.values import Mask, Value
from stepguard.rules.witness import Witnesses
from stepguard.series.detectors import Detection
from stepguard.signals import Frame, signal


class Watch(NamedTuple):
    """A condition, and the layers at which it looks."""

    condition: Condition
    mask: NDArray[np.bool_]
    """Of shape (layers,)."""


class Truth(NamedTuple):
    """What a condition says at a step."""

    holds: NDArray[np.bool_]
    """Of shape () or (layers,); False where it is not known."""
    known: NDArray[np.bool_]
    witnesses: NDArray[np.bool_] | None
    """Of shape (layers,): the layers that make it true. None where no layers are involved."""
    seen: NDArray[np.bool_] | None
    """Of shape (layers,): the layers that it could look at. None where no layers are involved."""


class _Watched:
    """A watch with its cells."""

    def __init__(self, watch: Watch, circuit: Circuit) -> None:
        self.condition, self.mask = watch
        self.root = circuit.cell(self.condition.root, self.mask)
        nodes = list(tree.walk(self.condition.root))
        reads = [node for node in nodes if isinstance(node, Read)]
        self.signals = [circuit.cell(node, self.mask) for node in reads if node.text not in CLOCKS]
        self.detections: list[Cell[Detection]] = [
            circuit.detection(node, self.mask)
            for node in nodes
            if isinstance(node, Call) and isinstance(FUNCTIONS[node.function], Detector)
        ]

    def fresh(self) -> Mask:
        """Where any of its signals was measured at this step; everywhere if it reads none."""
        fresh = np.asarray(not self.signals)
        for cell in self.signals:
            known = cell.get().known
            if known.ndim:
                known = known & self.mask if self.condition.vector else np.any(known & self.mask)
            fresh = fresh | known
        return np.asarray(fresh)


class Evaluator:
    """Evaluates conditions step by step.

    What conditions have in common is computed once a step; what windows look at is kept at every step,
    whether a condition is asked for or not. A condition is unknown at a step at which none of its signals
    was measured.
    """

    def __init__(self, watches: Sequence[Watch], layers: int) -> None:
        self._circuit = Circuit(layers)
        self._layers = layers
        self._watched = [_Watched(watch, self._circuit) for watch in watches]
        self._readings = {
            watch.condition.subject: Readings((layers,) if _per_layer(watch.condition.subject) else ())
            for watch in watches
        }

    def feed(self, frame: Frame, progress: float | None) -> None:
        """Begin a step; steps ascend. Never raises for a fault of one condition: its `truth` does."""
        with np.errstate(all="ignore"):
            self._circuit.feed(frame, progress)
            for name, readings in self._readings.items():
                with suppress(ValueError):
                    readings.push(frame.step, self._circuit.read(name, vector=_per_layer(name)))

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
            known = np.asarray(value.known & fresh)
            return self._of_run(watched, np.asarray(value.data & known), known)

    def _of_run(self, watched: _Watched, holds: Mask, known: Mask) -> Truth:
        if not watched.condition.layered:
            return Truth(holds, known, None, None)
        witnesses = Witnesses(watched.mask, lambda node: self._value(node, watched.mask))
        if holds:
            witnesses.visit(watched.condition.root, True)
        return Truth(holds, known, witnesses.layers, witnesses.seen)

    def _value(self, node: Node, mask: Mask) -> Value:
        return self._circuit.cell(node, mask).get()

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
        value = self._circuit.read(signal, vector=_per_layer(signal))
        if value.data.ndim and layer is None:
            return None
        at = () if value.data.ndim == 0 else layer
        return float(value.data[at]) if value.known[at] else None

    def readings(self, signal: str, layer: int | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Give steps and values of a subject's last readings, NaN where not finite; KeyError for others."""
        if _per_layer(signal) and layer is None:
            return (), ()
        return self._readings[signal].last(layer if _per_layer(signal) else None)

    def rewind(self, step: int) -> None:
        """Forget everything after a step."""
        self._circuit.history.rewind(step)
        self._circuit.clear()
        for readings in self._readings.values():
            readings.rewind(step)

    def state_dict(self) -> dict[str, Any]:
        """Give everything that is remembered, as plain arrays and containers."""
        readings = {name: readings.state_dict() for name, readings in self._readings.items()}
        return {"history": self._circuit.history.state_dict(), "readings": readings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another evaluator remembered; signals that are new here begin empty."""
        self._circuit.history.load_state_dict(state["history"])
        self._circuit.clear()
        for name, readings in self._readings.items():
            if name in state["readings"]:
                readings.load_state_dict(state["readings"][name])


def _per_layer(name: str) -> bool:
    found = signal(name)
    return found is not None and found.per == "layer"


def _at(measured: NDArray[Any], layer: int | None) -> float | None:
    if measured.ndim and layer is None:
        return None
    value = float(measured[layer] if measured.ndim else measured)
    return None if np.isnan(value) else value
