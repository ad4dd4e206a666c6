"""A condition of a rule with its cells, and what tells whether it can be known at a step."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.rules import tree
from stepguard.rules.cells import Cell
from stepguard.rules.circuit import Circuit
from stepguard.rules.expression import Condition
from stepguard.rules.functions import FUNCTIONS, Detector
from stepguard.rules.tree import CLOCKS, Call, Read
from stepguard.rules.values import Mask
from stepguard.series.detectors import Detection


class Watch(NamedTuple):
    """A condition, and the layers at which it looks."""

    condition: Condition
    mask: NDArray[np.bool_]
    """Of shape (layers,)."""


class Watched:
    """A watch with its cells, and with what tells at once that it does not hold."""

    may_hold: Callable[[], bool]

    def __init__(self, watch: Watch, circuit: Circuit) -> None:
        self.condition, self.mask = watch
        self.root = circuit.cell(self.condition.root, self.mask)
        nodes = list(tree.walk(self.condition.root))
        reads = [node for node in nodes if isinstance(node, Read)]
        self.signals = [
            (circuit.cell(node, self.mask), node.kind.vector) for node in reads if node.text not in CLOCKS
        ]
        calls = [node for node in nodes if isinstance(node, Call)]
        self.series = frozenset(circuit.looked_at(node, self.mask) for node in calls) - {None}
        """What its windows look at."""
        self.detections: list[Cell[Detection]] = [
            circuit.detection(node, self.mask)
            for node in calls
            if isinstance(FUNCTIONS[node.function], Detector)
        ]

    def fresh(self) -> Mask:
        """Where any of its signals was measured at this step; everywhere if it reads none."""
        fresh = np.asarray(not self.signals)
        for cell, per_layer in self.signals:
            value = cell.get()
            if not per_layer:
                fresh = fresh | (value is not None)
            elif self.condition.vector:
                fresh = fresh | (value.known & self.mask)
            else:
                fresh = fresh | np.any(value.known & self.mask)
        return np.asarray(fresh)

    def may_be_fresh(self, signals: Set[str]) -> bool:
        """Whether a step at which these signals were measured may have any of its own."""
        return not self.condition.signals or not self.condition.signals.isdisjoint(signals)
