"""Conditions as a circuit: one cell for each different part of them, computed at most once a step."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from stepguard.rules import values
from stepguard.rules.functions import FUNCTIONS, Detector, Elementwise, OverLayers, OverSteps, Pick
from stepguard.rules.tree import Call, Constant, Node, Operation, Read
from stepguard.rules.values import Mask, Value
from stepguard.series.detectors import Detection
from stepguard.series.history import History
from stepguard.signals import Frame

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
    "**": np.power,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_LOGIC = {"and": values.both, "or": values.either}
_UNARY = {"-": values.negative, "not": values.negation}

T = TypeVar("T")


class Cell(Generic[T]):
    """One result of a step: computed when it is first asked for, then the same, also if it failed."""

    __slots__ = ("_compute", "_failure", "_result")

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._result: T | None = None
        self._failure: Exception | None = None

    def get(self) -> T:
        """Give the result, or raise what computing it raised."""
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            try:
                self._result = self._compute()
            except Exception as error:
                self.fail(error)
                raise
        return self._result

    def fail(self, error: Exception) -> None:
        """Make everything that needs this cell fail at this step."""
        self._failure = error

    def clear(self) -> None:
        """Begin a step."""
        self._result = self._failure = None


class _Series:
    """What windows look at: the argument of a function over steps, pushed into the history once a step."""

    def __init__(self, key: str, argument: Cell[Value]) -> None:
        self.key = key
        self.argument = argument

    def push(self, history: History, step: int) -> None:
        try:
            value = self.argument.get()
            if value.known.any():
                history.push(self.key, step, values.readings(value))
        except Exception as error:  # whoever reads the cell raises it
            self.argument.fail(error)


class Circuit:
    """The parts of many conditions, over one history. Equal parts are one cell."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.history = History()
        self._frame = Frame(step=-1)
        self._progress: float | None = None
        self._cells: dict[str, Cell[Value]] = {}
        self._detections: dict[str, Cell[Detection]] = {}
        self._series: dict[str, _Series] = {}
        self._absent = Value(np.full(layers, np.nan), np.zeros(layers, np.bool_))

    def feed(self, frame: Frame, progress: float | None) -> None:
        """Begin a step: push what windows will look at. Faults stay in the cells."""
        self._frame, self._progress = frame, progress
        self.clear()
        for series in self._series.values():
            series.push(self.history, frame.step)

    def clear(self) -> None:
        """Forget every result of the step."""
        cells: Iterable[Cell[Any]] = (*self._cells.values(), *self._detections.values())
        for cell in cells:
            cell.clear()

    def cell(self, node: Node, mask: Mask) -> Cell[Value]:
        """Give the cell of a part of a condition, for a rule that looks at the layers of the mask."""
        key = _key(node, mask)
        if key not in self._cells:
            self._cells[key] = Cell(self._computation(node, mask))
        return self._cells[key]

    def detection(self, node: Call, mask: Mask) -> Cell[Detection]:
        """Give the cell of a detector's whole answer."""
        return self._detections[_key(node, mask)]

    def read(self, name: str, *, vector: bool) -> Value:
        """Read a signal or a clock of this step; ValueError if it has another number of layers."""
        if name == "step":
            return values.constant(self._frame.step)
        if name == "progress":
            return _scalar(self._progress)
        return self._vector(name) if vector else _scalar(self._frame.scalars.get(name))

    def _vector(self, name: str) -> Value:
        vector = self._frame.vectors.get(name)
        if vector is None:
            return self._absent
        if vector.values.shape != (self.layers,):
            raise ValueError(f"{name} has the shape {vector.values.shape}, expected ({self.layers},)")
        return values.number(vector.values, vector.known)

    def _computation(self, node: Node, mask: Mask) -> Callable[[], Value]:
        match node:
            case Constant():
                value = values.constant(node.value)
                return lambda: value
            case Read():
                return partial(self.read, node.text, vector=node.kind.vector)
            case Operation():
                return _operation(node.operator, [self.cell(part, mask) for part in node.parts])
            case Call():
                return self._call(node, mask)
            case _:
                raise TypeError(f"unknown node {node}")

    def _call(self, node: Call, mask: Mask) -> Callable[[], Value]:
        function = FUNCTIONS[node.function]
        argument = self.cell(node.argument, mask)
        match function:
            case Elementwise():
                return lambda: function.run(argument.get())
            case OverLayers():
                return lambda: function.run(argument.get(), mask)
            case Pick():
                return lambda: values.pick(value := argument.get(), function.index(value, mask))
            case OverSteps():
                return self._over_steps(function, node, mask)
            case Detector():
                return self._detector(function, node, mask)
            case _:
                raise TypeError(f"unknown function {function}")

    def _over_steps(self, function: OverSteps, node: Call, mask: Mask) -> Callable[[], Value]:
        reach, positive, truth = function.reach(node.settings), node.argument.positive, node.kind.truth
        series = self._window(node, mask, reach)

        def compute() -> Value:
            series.argument.get()
            step = self._frame.step
            window = self.history.window(series.key, step, reach)
            data = function.run(window, step, node.settings, positive)
            known = ~np.isnan(data)
            return Value((data == 1) & known if truth else data, known)

        return compute

    def _detector(self, function: Detector, node: Call, mask: Mask) -> Callable[[], Value]:
        reach = function.reach(node.settings)
        series = self._window(node, mask, reach)

        def detect() -> Detection:
            series.argument.get()
            window = self.history.window(series.key, self._frame.step, reach)
            return function.run(window, self._frame.step, node.settings)

        cell = self._detections[_key(node, mask)] = Cell(detect)
        return lambda: Value(cell.get().holds, cell.get().known)

    def _window(self, node: Call, mask: Mask, reach: int) -> _Series:
        key = _key(node.argument, mask)
        self.history.reserve(key, reach, (self.layers,) if node.argument.kind.vector else ())
        if key not in self._series:
            self._series[key] = _Series(key, self.cell(node.argument, mask))
        return self._series[key]


def _operation(name: str, parts: list[Cell[Value]]) -> Callable[[], Value]:
    if len(parts) == 1:
        unary, part = _UNARY[name], parts[0]
        return lambda: unary(part.get())
    if name in _LOGIC:
        logic = _LOGIC[name]
        return lambda: values.fold(logic, [part.get() for part in parts])
    left, right = parts
    if name in _COMPARISONS:
        comparison = _COMPARISONS[name]
        return lambda: values.compare(comparison, left.get(), right.get())
    arithmetic = _ARITHMETIC[name]
    return lambda: values.arithmetic(arithmetic, left.get(), right.get())


def _scalar(value: float | None) -> Value:
    return values.ABSENT if value is None else values.constant(value)


def _key(node: Node, mask: Mask) -> str:
    """Name a part so that it means the same in every process: its text, and the layers where they matter."""
    if not node.across:
        return node.text
    return f"{node.text} @{hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=8).hexdigest()}"
