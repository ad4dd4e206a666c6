"""Conditions over many steps at once: columns of frames in, the first frame at which one may hold out.

At nearly every step of a recorded run no condition holds, and to find that out step by step takes longer than
all else. So the steps lie side by side here, as layers do elsewhere: the window of each is a column of one
large window, on which the functions of the rule language work as they are. Whatever may hold is left to the
evaluation of single steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.rules import values
from stepguard.rules.cells import Series, Youth
from stepguard.rules.circuit import Circuit, key_of
from stepguard.rules.functions import FUNCTIONS, Detector, Elementwise, OverLayers, OverSteps, Pick
from stepguard.rules.operators import COMPARISONS, ON_LAYERS
from stepguard.rules.screening import cost
from stepguard.rules.side_by_side import OVER_LAYERS, Irregular, Places, Rows, Windows
from stepguard.rules.tree import Call, Constant, Node, Operation, Read
from stepguard.rules.values import Array, Mask, Value
from stepguard.series.blocks import Block
from stepguard.series.detectors import Detection
from stepguard.series.history import begun
from stepguard.series.windows import OF_LAYERS, STEADY

_SUMS = frozenset({"mean", "std", "ewma"})
"""Functions whose sums numpy makes in another order where there is a single column."""
_STEADY = STEADY - {"slope"}
"""Functions to which it does not matter how far apart the readings are."""


class Group(NamedTuple):
    """Frames of a block that have the same signals."""

    places: Places
    """Where they stand in the block, ascending."""
    signals: frozenset[str]
    roots: Sequence[tuple[Node, Mask]]
    """The conditions that do not surely fail to hold, and the layers at which they look."""
    series: Sequence[Series]
    """The series that may be known."""


class Stretch:
    """Frames side by side, over what a circuit remembers of those before.

    Args:
        circuit: is asked for its history, and not changed before `remember`.
        block: the frames, at ascending steps.
        groups: the same frames by the signals that they have.
        total_steps: planned length of the run, for `progress`.
    """

    def __init__(
        self, circuit: Circuit, block: Block, groups: Sequence[Group], total_steps: int | None
    ) -> None:
        self.circuit, self.block, self.total_steps = circuit, block, total_steps
        self._looks = [_Look(self, group) for group in groups]
        self._rows: dict[str, Rows] = {}

    def quiet(self) -> int:
        """How many frames at the beginning surely have no condition that holds; Irregular if that is dear."""
        for series in self._pushed():
            self.rows(series)
        found = (each.first(root, mask) for each in self._looks for root, mask in each.group.roots)
        return min(found, default=len(self.block))

    def remember(self, frames: int) -> None:
        """Push what windows look at of the first frames."""
        history = self.circuit.history
        for series in self._pushed():
            rows = self.rows(series)
            count = int(np.searchsorted(rows.places, frames))
            if count:
                added = slice(len(rows.steps) - len(rows.places), len(rows.steps) - len(rows.places) + count)
                history.extend(series.key, rows.steps[added], rows.values[added])
                series.renew()

    def _pushed(self) -> list[Series]:
        return list(dict.fromkeys(series for look in self._looks for series in look.group.series))

    def rows(self, series: Series) -> Rows:
        """All that windows over a series may look at."""
        if series.key not in self._rows:
            self._rows[series.key] = self._put_together(series)
        return self._rows[series.key]

    def _put_together(self, series: Series) -> Rows:
        history, key = self.circuit.history, series.key
        steps, kept = history.readings(key)
        first = history.first(key)
        over = series.over(int(self.block.steps[0]))
        looks = [] if over else [look for look in self._looks if series in look.group.series]
        read = [look.readings(series) for look in looks]
        places = np.concatenate([each[0] for each in read]) if read else np.zeros(0, np.intp)
        if not len(places):
            return Rows(steps, kept, first, places)
        if isinstance(series, Youth):
            raise Irregular  # it is young
        order = np.argsort(places)
        places, added = places[order], np.concatenate([each[1] for each in read])[order]
        now = self.block.steps[places]
        if len(steps) and steps[-1] >= now[0]:
            raise Irregular  # the run has gone back
        first = begun(first, now, added)
        return Rows(np.concatenate((steps, now)), np.concatenate((kept, added)), first, places)


class _Look:
    """The frames of one group: values of shape (frames,) of the run, (frames, layers) per layer, or ()."""

    def __init__(self, stretch: Stretch, group: Group) -> None:
        self.group = group
        self._stretch, self._circuit = stretch, stretch.circuit
        self._steps = stretch.block.steps[group.places]
        self._values: dict[str, Value] = {}

    def first(self, root: Node, mask: Mask) -> int:
        """The place in the block at which a condition first may hold; the block's length if nowhere."""
        where = np.flatnonzero(np.broadcast_to(self._holds(root, mask), self._steps.shape))
        return int(self.group.places[where[0]]) if len(where) else len(self._stretch.block)

    def _holds(self, node: Node, mask: Mask) -> NDArray[np.bool_]:
        """At which frames a truth holds, of one per layer at a layer of the mask; cheap parts first."""
        if isinstance(node, Operation) and node.operator == "and" and not node.kind.vector:
            found = np.ones(self._steps.shape, np.bool_)
            for part in sorted(node.parts, key=cost):
                found = found & self._holds(part, mask)
                if not found.any():
                    break
            return found
        data = self.value(node, mask).data
        return np.count_nonzero(data & mask, axis=-1) > 0 if node.kind.vector else data

    def readings(self, series: Series) -> tuple[Places, Array]:
        """What windows keep of the argument of a series, and where in the block: what is finite."""
        data, known = self.value(series.node, series.mask)
        layers = (self._circuit.layers,) if series.node.kind.vector else ()
        shape = (len(self._steps), *layers)
        number = np.broadcast_to(np.asarray(data, np.float64), shape)
        row = np.where(known & np.isfinite(number), number, np.nan)
        there = ~np.isnan(row) if not layers else ~np.isnan(row).all(axis=1)
        return self.group.places[there], row[there]

    def value(self, node: Node, mask: Mask) -> Value:
        """The value of a part of a condition."""
        key = key_of(node, mask)
        if key not in self._values:
            self._values[key] = self._computed(node, mask)
        return self._values[key]

    def _computed(self, node: Node, mask: Mask) -> Value:
        match node:
            case Constant():
                return values.spread(node.value, truth=False)
            case Read():
                return self._read(node)
            case Operation():
                return self._operation(node, mask)
            case Call():
                return self._call(node, mask)
            case _:
                raise TypeError(f"unknown node {node}")

    def _read(self, node: Read) -> Value:
        block, name = self._stretch.block, node.text
        if name == "step":
            return _known(self._steps.astype(np.float64))
        if name == "progress" and self._stretch.total_steps:
            return _known(self._steps / self._stretch.total_steps)
        if name not in self.group.signals:
            return values.spread(None, truth=False)
        if not node.kind.vector:
            return _known(block.scalars[name].values[self.group.places])
        column = block.vectors[name]
        if column.values.shape[1] != self._circuit.layers:
            raise Irregular
        return values.number(column.values[self.group.places], column.known[self.group.places])

    def _operation(self, node: Operation, mask: Mask) -> Value:
        parts = [self.value(part, mask) for part in node.parts]
        if node.kind.vector:
            pairs = zip(node.parts, parts, strict=True)
            parts = [value if part.kind.vector else _beside_layers(value) for part, value in pairs]
        if len(parts) == 1:
            return ON_LAYERS.unary[node.operator](parts[0])
        if node.operator in ON_LAYERS.logic:
            return reduce(ON_LAYERS.logic[node.operator], parts)
        left, right = parts
        if node.operator in COMPARISONS:
            return ON_LAYERS.compare(COMPARISONS[node.operator], left, right)
        return ON_LAYERS.arithmetic(ON_LAYERS.functions[node.operator], left, right)

    def _call(self, node: Call, mask: Mask) -> Value:
        function = FUNCTIONS[node.function]
        if isinstance(function, OverSteps | Detector):
            return self._over_steps(function, node, mask)
        argument = self.value(node.argument, mask)
        match function:
            case Elementwise():
                return function.run(argument)
            case OverLayers() | Pick():
                if not argument.data.ndim:
                    return values.spread(None, truth=node.kind.truth)
                return OVER_LAYERS[node.function](argument, mask)
            case _:
                raise TypeError(f"unknown function {function}")

    def _over_steps(self, function: OverSteps | Detector, node: Call, mask: Mask) -> Value:
        series = self._circuit.looked_at(node, mask)
        assert series is not None
        rows = self._stretch.rows(series)
        if isinstance(series, Youth):
            return self._early(series, rows, node)
        found = self._windowed(function, node, rows)
        known = ~np.isnan(found)
        return Value((found == 1) & known if node.kind.truth else found, known)

    def _windowed(self, function: OverSteps | Detector, node: Call, rows: Rows) -> Array:
        """What a function gives of the windows, by the quickest way that gives the same."""
        name, settings, positive = node.function, node.settings, node.argument.positive
        windows = Windows(rows, self._steps, function.reach(settings))
        if isinstance(function, Detector):
            return windows.apply(lambda window: _numbers(function.run(window, 0, settings)))
        if name == "trend" and not node.argument.kind.vector:
            return windows.trend()
        if name in OF_LAYERS and not np.isnan(rows.values).any():
            return windows.apply_to_two(OF_LAYERS[name], int(settings["n"]))
        if name in _SUMS and (rows.first.size == 1 or name == "ewma"):
            apply = windows.apply_alone
        else:
            apply = windows.apply_steady if name in _STEADY else windows.apply
        return apply(lambda window: function.run(window, 0, settings, positive))

    def _early(self, youth: Youth, rows: Rows, node: Call) -> Value:
        function, step = FUNCTIONS[node.function], int(self._steps[0])
        if not youth.over(step) and np.isfinite(rows.first).any():
            raise Irregular  # what it gives will change
        assert isinstance(function, OverSteps)
        found = function.run(youth.window(step), step, node.settings, node.argument.positive)
        return _unless_nan(np.broadcast_to(found, (len(self._steps), *found.shape)))


def _known(data: NDArray[Any]) -> Value:
    return Value(data, np.ones(data.shape, np.bool_))


def _unless_nan(data: Array) -> Value:
    return Value(data, ~np.isnan(data))


def _beside_layers(value: Value) -> Value:
    return Value(value.data[:, np.newaxis], value.known[:, np.newaxis]) if value.data.ndim else value


def _numbers(found: Detection) -> Array:
    return np.where(found.known, found.holds.astype(np.float64), np.nan)
