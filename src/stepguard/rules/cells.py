"""The cells of a circuit, and the series that its windows look at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from stepguard.rules import values
from stepguard.rules.tree import Node
from stepguard.rules.values import Mask, Scalar, Value
from stepguard.series.history import History, Window
from stepguard.series.medians import RunningMedian, RunningScore, SortedLayers
from stepguard.series.running import BelowBound, Largest, LayerBound, RunBound
from stepguard.series.trends import RunningTrend

T = TypeVar("T")
Running: TypeAlias = (
    RunBound | LayerBound | BelowBound | RunningMedian | RunningTrend | Largest | SortedLayers | RunningScore
)

_PATIENCE = 1000
"""Readings after which a bound that nobody asked for is given up: of a rule that sleeps, say."""


class Cell(Generic[T]):
    """One result of a step: computed when it is first asked for, then the same, also if it failed."""

    __slots__ = ("_at", "_clock", "_compute", "_failure", "_result")

    _result: T

    def __init__(self, compute: Callable[[], T], clock: list[int]) -> None:
        self._compute = compute
        self._clock = clock
        """Of one number, that moves on at each step; it is shared with the other cells."""
        self._at = -1
        self._failure: Exception | None = None

    def get(self) -> T:
        """Give the result, or raise what computing it raised."""
        now = self._clock[0]
        if self._at == now:
            if self._failure is not None:
                raise self._failure
            return self._result
        self._at, self._failure = now, None
        try:
            self._result = result = self._compute()
        except Exception as error:
            self._failure = error
            raise
        return result

    def fail(self, error: Exception) -> None:
        """Make everything that needs this cell fail at this step."""
        self._at, self._failure = self._clock[0], error


class Series:
    """What windows look at: the argument of a function over steps, pushed into the history once a step.

    Bounds and other running forms are pushed the same; they are made anew from the history where it jumps.
    """

    def __init__(self, key: str, node: Node, mask: Mask, argument: Cell[Any], history: History) -> None:
        self.key, self.node, self.mask, self.argument = key, node, mask, argument
        self._history = history
        self._makers: list[Callable[[], Running]] = []
        self._bounds: dict[int, Any] = {}
        """Those that are kept up to date, by the places of their makers."""
        self._asked: set[int] = set()
        self._pushes = 0
        self.renewals = 0
        """How often the history has jumped."""

    def running(self, make: Callable[[], Running]) -> Callable[[], Any]:
        """Add a running form; gives what gives it.

        It is made from the history when it is asked for, and kept up to date as long as it goes on being.
        """
        place = len(self._makers)
        self._makers.append(make)

        def get() -> Any:
            self._asked.add(place)
            bound = self._bounds.get(place)
            return self._made(place) if bound is None else bound

        return get

    def _made(self, place: int) -> Any:
        bound: Any = self._makers[place]()
        for step, row in zip(*self._history.readings(self.key), strict=True):
            bound.push(int(step), row if self.node.kind.vector else float(row))
        self._bounds[place] = bound
        return bound

    def _push_bounds(self, step: int, row: Any) -> None:
        for bound in self._bounds.values():
            bound.push(step, row)
        self._pushes += 1
        if self._pushes % _PATIENCE == 0:
            self._bounds = {place: each for place, each in self._bounds.items() if place in self._asked}
            self._asked.clear()

    def over(self, step: int) -> bool:
        """Whether nothing is pushed any more from a step on."""
        return False

    def push(self, step: int) -> None:
        """Push the argument of this step, if it is known."""
        try:
            if self.node.kind.vector:
                self._push_layers(step, self.argument.get())
            else:
                self._push_run(step, self.argument.get())
        except Exception as error:  # whoever reads the cell raises it
            self.argument.fail(error)

    def _push_run(self, step: int, value: Scalar) -> None:
        if value is None or not math.isfinite(value):
            return
        self._history.push_number(self.key, step, value)
        self._push_bounds(step, value)

    def _push_layers(self, step: int, value: Value) -> None:
        row = values.readings(value)
        kept = None if row is None else self._history.push(self.key, step, row)
        if kept is not None:
            self._push_bounds(step, kept)

    def renew(self) -> None:
        """Go on from the history as it is now."""
        self._bounds.clear()
        self.renewals += 1


class Kept:
    """What a window gave when it was last looked at; between two readings it mostly still holds the same."""

    def __init__(self) -> None:
        self._of: tuple[int, ...] = ()
        self.result: Any = None
        """What it gave."""

    def holds(self, renewals: int, window: Window) -> bool:
        """Whether the window holds what it held then."""
        return self._of == _identity(renewals, window)

    def whole(self, renewals: int) -> bool:
        """Whether anything was kept since the history jumped: all there is to know of the first steps."""
        return len(self._of) > 1 and self._of[0] == renewals

    def keep(self, renewals: int, window: Window, full: Mask, result: Any) -> None:
        """Keep what a window gives as long as it holds the same, unless it is young: that ends by itself."""
        count = np.count_nonzero(full)
        if count == full.size or count + np.count_nonzero(np.isinf(window.first)) == full.size:
            self._of, self.result = _identity(renewals, window), result


def _identity(renewals: int, window: Window) -> tuple[int, ...]:
    steps = window.steps
    return (renewals, len(steps), int(steps[0]), int(steps[-1])) if len(steps) else (renewals,)


class Youth(Series):
    """What `early` looks at: the argument's readings of the first n steps, and none after."""

    def __init__(
        self, key: str, node: Node, mask: Mask, argument: Cell[Any], history: History, *, n: int
    ) -> None:
        super().__init__(key, node, mask, argument, history)
        self._n = n
        self._known_end = math.inf

    def renew(self) -> None:
        """Go on from the history as it is now."""
        super().renew()
        self._known_end = math.inf

    def over(self, step: int) -> bool:
        """Whether the first steps are over."""
        return step >= self._end(step)

    def push(self, step: int) -> None:
        """Push the argument of this step, if it is known and one of the first."""
        if not self.over(step):
            super().push(step)

    def window(self, step: int) -> Window:
        """The readings that are kept."""
        end = self._end(step)
        return self._history.window(self.key, step if math.isinf(end) else int(end) - 1, self._n)

    def _end(self, step: int) -> float:
        """The step after the last one that is kept; none before the first reading."""
        if math.isinf(self._known_end):
            first = self._history.window(self.key, step, 1).first
            self._known_end = float(np.min(first, initial=np.inf)) + self._n
        return self._known_end
