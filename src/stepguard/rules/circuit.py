"""Conditions as a circuit: one cell for each different part of them, computed at most once a step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from stepguard.rules import values
from stepguard.rules.bounds import LAYER_BOUNDS, RUN_BOUNDS
from stepguard.rules.cells import Cell, Kept, Running, Series, Youth
from stepguard.rules.functions import (
    FUNCTIONS,
    Detector,
    Elementwise,
    FirstSteps,
    OverLayers,
    OverSteps,
    Pick,
)
from stepguard.rules.operators import (
    COMPARISONS,
    ON_LAYERS,
    ON_RUN,
    comparison_with,
    operation,
    unchanged,
    window_of_layers,
    window_of_run,
)
from stepguard.rules.picking import pick
from stepguard.rules.shortcuts import (
    OF_RUNNING,
    of_long_window,
    of_running,
    of_two_numbers,
    of_two_rows,
)
from stepguard.rules.tree import Call, Constant, Node, Operation, Read
from stepguard.rules.values import Mask, Scalar, Value
from stepguard.series.detectors import Detection
from stepguard.series.history import History
from stepguard.series.windows import OF_LAYERS, OF_RUN, STEADY
from stepguard.signals import Frame


class Circuit:
    """The parts of many conditions, over one history. Equal parts are one cell."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.history = History()
        self.frame = Frame(step=-1)
        """The frame of this step."""
        self._progress: float | None = None
        self._clock = [0]
        self._cells: dict[str, Cell[Any]] = {}
        self._detections: dict[str, Cell[Detection]] = {}
        self._may_hold: dict[str, Callable[[int], Any]] = {}
        self.series: dict[str, Series] = {}
        """What windows look at; a series comes behind those that it is made of."""
        self._looked_at: dict[str, Series] = {}
        """By function over steps."""
        self._absent = Value(np.full(layers, np.nan), np.zeros(layers, np.bool_))

    def feed(self, frame: Frame, progress: float | None, series: Iterable[Series]) -> None:
        """Begin a step: push those series that may be known at it. Faults stay in the cells."""
        self.frame, self._progress = frame, progress
        self.clear()
        for each in series:
            each.push(frame.step)

    def _step(self) -> int:
        return self.frame.step

    def clear(self) -> None:
        """Forget every result of the step."""
        self._clock[0] += 1

    def renew(self) -> None:
        """Go on from the history as it is now."""
        self.clear()
        for each in self.series.values():
            each.renew()

    def cell(self, node: Node, mask: Mask) -> Cell[Any]:
        """Give the cell of a part of a condition, for a rule that looks at the layers of the mask.

        It gives a `Value` for a node per layer, else a `Scalar`.
        """
        key = key_of(node, mask)
        if key not in self._cells:
            self._cells[key] = Cell(self._computation(node, mask), self._clock)
        return self._cells[key]

    def value(self, node: Node, mask: Mask) -> Callable[[], Any]:
        """Give what gives the value of a part; from a cell, unless it is quicker to compute it again."""
        if isinstance(node, Operation) and not node.kind.vector:
            return self._operation(node, mask)
        return self.cell(node, mask).get

    def detection(self, node: Call, mask: Mask) -> Cell[Detection]:
        """Give the cell of a detector's whole answer."""
        return self._detections[key_of(node, mask)]

    def running(self, node: Call, mask: Mask, make: Callable[[], Running]) -> Callable[[], Any]:
        """Give what gives a running form over what a function over steps looks at."""
        return self._looked_at[key_of(node, mask)].running(make)

    def looked_at(self, node: Call, mask: Mask) -> Series | None:
        """Give the series at which a function over steps looks; None for another function."""
        return self._looked_at.get(key_of(node, mask))

    def may_hold(self, node: Call, mask: Mask) -> Callable[[int], Any] | None:
        """Give the bound of a function over steps: whether it may hold at a step; None if it has none."""
        return self._may_hold.get(key_of(node, mask))

    def read(self, name: str) -> Scalar:
        """Read a signal of the run or a clock of this step."""
        if name == "step":
            return float(self.frame.step)
        value = self._progress if name == "progress" else self.frame.scalars.get(name)
        return None if value is None else float(value)

    def read_layers(self, name: str) -> Value:
        """Read a signal per layer of this step; ValueError if it has another number of layers."""
        vector = self.frame.vectors.get(name)
        if vector is None:
            return self._absent
        if vector.values.shape != (self.layers,):
            raise ValueError(f"{name} has the shape {vector.values.shape}, expected ({self.layers},)")
        return values.number(vector.values, vector.known)

    def _computation(self, node: Node, mask: Mask) -> Callable[[], Any]:
        match node:
            case Constant():
                return lambda: node.value
            case Read():
                return partial(self.read_layers if node.kind.vector else self.read, node.text)
            case Operation():
                return self._operation(node, mask)
            case Call():
                return self._call(node, mask)
            case _:
                raise TypeError(f"unknown node {node}")

    def _operation(self, node: Operation, mask: Mask) -> Callable[[], Any]:
        operators = ON_LAYERS if node.kind.vector else ON_RUN
        parts = [self._part(part, mask, vector=node.kind.vector) for part in node.parts]
        last = node.parts[-1]
        if node.operator in COMPARISONS and isinstance(last, Constant) and not math.isnan(last.value):
            return comparison_with(node.operator, parts[0], last.value, operators)
        return operation(node.operator, parts, operators)

    def _part(self, node: Node, mask: Mask, *, vector: bool) -> Callable[[], Any]:
        """The value of a part, set beside those of the layers where the others are per layer."""
        if isinstance(node, Constant):
            number = values.spread(node.value, truth=False) if vector else node.value
            return lambda: number
        get = self.value(node, mask)
        if not vector or node.kind.vector:
            return get
        return lambda: values.spread(get(), truth=node.kind.truth)

    def _call(self, node: Call, mask: Mask) -> Callable[[], Any]:
        function = FUNCTIONS[node.function]
        argument = self.cell(node.argument, mask)
        match function:
            case Elementwise():
                run = function.run if node.kind.vector else function.run_of_run
                return lambda: run(argument.get())
            case OverLayers():
                return unchanged(lambda value: function.run(value, mask), argument.get)
            case Pick():
                return pick(function, node.argument, mask, argument.get, lambda: self.frame.vectors)
            case FirstSteps():
                return self._first_steps(function, node, mask)
            case OverSteps():
                return self._over_steps(function, node, mask)
            case Detector():
                return self._detector(function, node, mask)
            case _:
                raise TypeError(f"unknown function {function}")

    def _first_steps(self, function: FirstSteps, node: Call, mask: Mask) -> Callable[[], Any]:
        n, argument = function.reach(node.settings), self.cell(node.argument, mask)
        key = f"{key_of(node.argument, mask)} in the first {n}"
        self.history.reserve(key, n, (self.layers,) if node.argument.kind.vector else ())
        youth = self.series[key] = Youth(key, node.argument, mask, argument, self.history, n=n)
        self._looked_at[key_of(node, mask)] = youth
        kept = Kept()

        def compute() -> Any:
            argument.get()
            if kept.whole(youth.renewals):
                return kept.result
            step = self.frame.step
            window = youth.window(step)
            result = function.run(window, step, node.settings, node.argument.positive)
            kept.keep(youth.renewals, window, window.full(step, n), result)
            return result

        return (window_of_layers if node.kind.vector else window_of_run)(compute, truth=False)

    def _over_steps(self, function: OverSteps, node: Call, mask: Mask) -> Callable[[], Any]:
        reach, positive, truth = function.reach(node.settings), node.argument.positive, node.kind.truth
        series = self._window(node, mask, reach)
        if node.function in OF_RUN and not node.kind.vector:
            return of_two_numbers(node.function, series, self.history, int(node.settings["n"]), self._step)
        if node.function in OF_RUNNING and not node.kind.vector:
            return of_running(node.function, series, self.history, reach, self._step)
        if node.kind.vector and (long := of_long_window(node, series, self.history, self._step, self.layers)):
            return self._after(series, window_of_layers(long, truth=False))
        kept, steady = Kept(), node.function in STEADY

        def windowed() -> Any:
            step = self.frame.step
            window = self.history.window(series.key, step, reach)
            if kept.holds(series.renewals, window):
                return kept.result
            result = function.run(window, step, node.settings, positive)
            if steady:
                kept.keep(series.renewals, window, window.full(step, reach), result)
            return result

        if not node.kind.vector:
            return self._after(series, window_of_run(windowed, truth=truth))
        if node.function in OF_LAYERS:
            n = int(node.settings["n"])
            windowed = of_two_rows(node.function, series, self.history, n, self._step, windowed=windowed)
        value = window_of_layers(windowed, truth=truth)
        if not steady:
            return self._after(series, value)
        silent = partial(self.history.silent, series.key, n=reach)
        return self._after(series, lambda: self._absent if silent(self.frame.step) else value())

    def _after(self, series: Series, compute: Callable[[], Any]) -> Callable[[], Any]:
        """First ask what the windows look at, which raises what went wrong inside it."""

        def checked() -> Any:
            series.argument.get()
            return compute()

        return checked

    def _detector(self, function: Detector, node: Call, mask: Mask) -> Callable[[], Any]:
        reach = function.reach(node.settings)
        series = self._window(node, mask, reach)

        def detect() -> Detection:
            series.argument.get()
            window = self.history.window(series.key, self.frame.step, reach)
            return function.run(window, self.frame.step, node.settings)

        cell = self._detections[key_of(node, mask)] = Cell(detect, self._clock)
        if node.kind.vector:
            return lambda: Value(cell.get().holds, cell.get().known)
        return lambda: bool(cell.get().holds) if cell.get().known else None

    def _window(self, node: Call, mask: Mask, reach: int) -> Series:
        key = key_of(node.argument, mask)
        self.history.reserve(key, reach, (self.layers,) if node.argument.kind.vector else ())
        if key not in self.series:
            argument = self.cell(node.argument, mask)
            self.series[key] = Series(key, node.argument, mask, argument, self.history)
        series = self._looked_at[key_of(node, mask)] = self.series[key]
        self._bound(series, node, mask)
        return series

    def _bound(self, series: Series, node: Call, mask: Mask) -> None:
        if node.kind.vector and node.function in LAYER_BOUNDS:
            make = partial(LAYER_BOUNDS[node.function], node.settings, self.layers)
        elif not node.kind.vector and node.function in RUN_BOUNDS:
            make = partial(RUN_BOUNDS[node.function], node.settings)
        else:
            return
        get = series.running(make)
        self._may_hold[key_of(node, mask)] = lambda step: get().may_hold(step)


def key_of(node: Node, mask: Mask) -> str:
    """Name a part so that it means the same in every process: its text, and the layers where they matter."""
    if not node.across:
        return node.text
    return f"{node.text} @{hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=8).hexdigest()}"
