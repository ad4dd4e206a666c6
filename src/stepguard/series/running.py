"""Bounds in running form: what says at nearly every step, for next to nothing, that something cannot hold.

A bound is fed with every reading of a series and may be asked at any step. It says "it may hold" too often,
but "it cannot hold" only where the function of `windows` or `detectors` that it stands before is not true: so
that function has to be called only where its bound says so. The medians are exactly those of `robust`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from itertools import pairwise
from math import inf, isnan, nan
from typing import Protocol, TypeVar

import numpy as np

from stepguard.series.detectors import BLOCKS, RECENT, Truth
from stepguard.series.history import Array
from stepguard.series.medians import Sorted
from stepguard.series.robust import MIN_BASELINE

Row_contra = TypeVar("Row_contra", contravariant=True)
Verdict_co = TypeVar("Verdict_co", covariant=True)

_SLACK = 1e-6
"""Relative width of the grey zone that rounding needs: inside of it "it may hold"."""


class Bound(Protocol[Row_contra, Verdict_co]):
    """What a series is fed to, reading by reading; steps ascend."""

    def push(self, step: int, row: Row_contra) -> None:
        """Take what was read at a step."""
        ...

    def may_hold(self, step: int) -> Verdict_co:
        """Tell whether it may hold at a step, the last one pushed or a later one."""
        ...


RunBound = Bound[float, bool]
"""For a number of the run."""
LayerBound = Bound[Array, Truth]
"""For one number a layer, NaN where nothing was read."""


class HeldBound:
    """Of `held`: whether enough of the last readings were true. Here "may" is "does"."""

    def __init__(self, n: int, of: int) -> None:
        self._n, self._of = n, of
        self._true: deque[int] = deque(maxlen=n)

    def push(self, step: int, row: float) -> None:
        """Take a truth, 1.0 or 0.0."""
        if row == 1.0:
            self._true.append(step)

    def may_hold(self, step: int) -> bool:
        """Tell whether the n-th last true reading is young enough."""
        return len(self._true) == self._n and self._true[0] > step - self._of


class SpikeBound:
    """Of `spike`: whether the reading now lies half as far above the median before as it should."""

    def __init__(self, n: int, by: float) -> None:
        self._n, self._by = n, by
        self._now: tuple[int, float] | None = None
        self._before = Sorted()

    def push(self, step: int, row: float) -> None:
        """Take a reading; the one before it joins what it is compared with."""
        if self._now is not None:
            self._before.add(*self._now)
        self._now = step, row

    def may_hold(self, step: int) -> bool:
        """Tell whether there is a reading now that lies far above."""
        if self._now is None or self._now[0] != step:
            return False
        self._before.forget(step - 1 - self._n)
        level = self._before.median() if len(self._before) >= MIN_BASELINE else nan
        return self._now[1] - level >= (self._by - 1) * abs(level) / 2


class StretchesBound:
    """Of `drift` and `plateau`, which look at the medians of equal stretches of the last n steps.

    A stretch of this step is one of the steps before, moved on: so each median is computed once, when the
    stretch ends, and kept for n steps.
    """

    def __init__(self, n: int) -> None:
        edges = [k * n // BLOCKS for k in range(BLOCKS + 1)]
        self._n, self._reached = n, -1
        widths = [end - begin for begin, end in pairwise(edges)]
        self._sliding = {width: Sorted() for width in set(widths)}
        self._medians = {width: array("d") for width in self._sliding}
        """By width: the medians of stretches that end at the last steps, newest last; NaN without reading."""
        self._places = [(width, end - n - 1) for width, end in zip(widths, edges[1:], strict=True)]
        """Of each stretch: its width, and its place among the medians, from behind."""

    def push(self, step: int, row: float) -> None:
        """Take a reading."""
        self.reach(step - 1)
        for sliding in self._sliding.values():
            sliding.add(step, row)

    def reach(self, step: int) -> None:
        """Compute the medians of all stretches that end at or before a step, but for what is long past."""
        if step <= self._reached:
            return
        begin = max(self._reached + 1, step - self._n)
        if begin > self._reached + 1:
            self._medians = {width: array("d") for width in self._sliding}
        for width, sliding in self._sliding.items():
            medians = self._medians[width]
            for end in range(begin, step + 1):
                sliding.forget(end - width)
                medians.append(sliding.median())
            if len(medians) > 3 * self._n:
                del medians[: -self._n - 1]
        self._reached = step

    def stretch(self, place: int) -> float:
        """The median of a stretch at the step that was reached, 0 for the oldest; NaN without readings."""
        width, behind = self._places[place]
        medians = self._medians[width]
        return medians[behind] if len(medians) >= -behind else nan


class DriftBound(StretchesBound):
    """Of `drift`: whether all of the newest stretches lie above all before them."""

    def may_hold(self, step: int) -> bool:
        """Tell whether they do; the last one before is compared first, which nearly always ends it."""
        self.reach(step)
        before, least = self.stretch(BLOCKS - RECENT - 1), inf
        for place in range(BLOCKS - RECENT, BLOCKS):
            median = self.stretch(place)
            if not before < median:  # also where one of them has no readings
                return False
            least = min(least, median)
        return all(self.stretch(place) < least for place in range(BLOCKS - RECENT - 1))


class PlateauBound(StretchesBound):
    """Of `plateau`: whether the Theil-Sen line falls by less than it should.

    It does where at least half of all pairs of stretches fall by less, which can be counted without the line.
    """

    def __init__(self, n: int, by: float) -> None:
        super().__init__(n)
        self._by = by

    def may_hold(self, step: int) -> bool:
        """Count the pairs."""
        self.reach(step)
        medians = [self.stretch(place) for place in range(BLOCKS)]
        if any(map(isnan, medians)):
            return False
        ordered = sorted(medians)
        level = abs(ordered[(BLOCKS - 1) // 2] + ordered[BLOCKS // 2]) / 2
        largest = max(abs(ordered[0]), abs(ordered[-1]))
        fall = self._by * level / BLOCKS * (1 + _SLACK) + _SLACK * _SLACK * largest
        return 2 * _rising(medians, fall) >= BLOCKS * (BLOCKS - 1) // 2


def _rising(values: list[float], fall: float) -> int:
    """How many pairs fall by less than `fall` for each place between them."""
    below: list[float] = []
    pairs = 0
    for place, value in enumerate(values):
        level = value + fall * place
        at = bisect_left(below, level)
        pairs += at
        below.insert(at, level)
    return pairs


class Largest:
    """No less than the largest reading of each layer in the last n steps.

    It is that of the last one or two spans of n steps, of which only one has to be kept.
    """

    def __init__(self, n: int, layers: int) -> None:
        self._n, self._begin = n, 0
        self._before, self._since = np.full(layers, -np.inf), np.full(layers, -np.inf)

    def push(self, step: int, row: Array) -> None:
        """Take a reading of all layers."""
        if step - self._begin >= self._n:
            self._before, self._since = self._since, np.full_like(row, -np.inf)
            self._begin = step
        self._since = np.fmax(self._since, row)

    def get(self) -> Array:
        """The bound of each layer; -inf without readings."""
        return np.maximum(self._before, self._since)


class BelowBound:
    """Of the largest reading of all layers in the last n steps: whether it may lie below a limit.

    One layer that is not below ends it for n steps; so one is looked at, and another where that one is.
    """

    def __init__(self, n: int, limit: float, mask: Truth) -> None:
        self._n, self._limit, self._places = n, limit, np.flatnonzero(mask)
        self._layer: int | None = None
        self._since = self._above = -inf
        """Since when the layer is looked at, and when it last was not below, with n steps behind it."""

    def push(self, step: int, row: Array) -> None:
        """Take a reading of all layers."""
        if self._layer is None or not row[self._layer] > self._limit:
            self._look_at_another(step, row)
        elif self._since <= step - self._n + 1:
            self._above = step

    def _look_at_another(self, step: int, row: Array) -> None:
        places = self._places[row[self._places] > self._limit]
        self._layer, self._since = (int(places[0]), step) if len(places) else (None, -inf)

    def may_hold(self, step: int) -> bool:
        """Tell whether the layer has been below for n steps, or not been looked at for as long."""
        return self._above <= step - self._n


class CrashBound:
    """Of `crash`: at which layers the largest of the last readings is so many times the reading now."""

    def __init__(self, fall: float, within: int, layers: int) -> None:
        self._fall, self._largest = fall, Largest(within, layers)
        self._step, self._now = -1, np.full(layers, np.nan)

    def push(self, step: int, row: Array) -> None:
        """Take a reading of all layers."""
        self._largest.push(step, row)
        self._step, self._now = step, row

    def may_hold(self, step: int) -> Truth:
        """Tell at which layers there is a reading now that lies so far below."""
        if step != self._step:
            return np.zeros(self._now.shape, np.bool_)
        return self._largest.get() >= self._fall * self._now
