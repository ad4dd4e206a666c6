"""Medians in running form, bit for bit those of `robust`: of a number of the run, and of one per layer."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from math import nan

import numpy as np

from stepguard.series import robust, windows
from stepguard.series.history import Array


class Sorted:
    """Readings of the last steps in order of their size."""

    def __init__(self) -> None:
        self._readings: deque[tuple[int, float]] = deque()
        self._sizes: list[float] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, step: int, value: float) -> None:
        """Take a reading."""
        self._readings.append((step, value))
        insort(self._sizes, value)

    def forget(self, step: int) -> None:
        """Forget what was read at or before a step."""
        while self._readings and self._readings[0][0] <= step:
            del self._sizes[bisect_left(self._sizes, self._readings.popleft()[1])]

    def median(self) -> float:
        """The median; NaN without readings."""
        return _middle(self._sizes)

    def mad(self) -> float:
        """The median absolute deviation, unscaled; NaN of fewer than two readings."""
        return _mad(self._sizes) if len(self._sizes) > 1 else nan


class RunningMedian:
    """`median` and `mad` of the last n steps of a number of the run."""

    def __init__(self, n: int) -> None:
        self._n, self._sorted = n, Sorted()

    def push(self, step: int, row: float) -> None:
        """Take a reading."""
        self._sorted.add(step, row)
        self._sorted.forget(step - self._n)

    def at(self, step: int) -> Sorted:
        """The readings in `(step - n, step]`; steps asked for ascend."""
        self._sorted.forget(step - self._n)
        return self._sorted


class SortedLayers:
    """Readings of the last n steps of one number per layer, each layer's in order of their size."""

    def __init__(self, n: int, layers: int) -> None:
        self._n = n
        self._rows: deque[tuple[int, Array]] = deque()
        self._sizes = [array("d") for _ in range(layers)]

    def push(self, step: int, row: Array) -> None:
        """Take a reading of all layers, NaN where there is none."""
        self._rows.append((step, row.copy()))
        for sizes, value in zip(self._sizes, row.tolist(), strict=True):
            if value == value:  # noqa: PLR0124 - not NaN
                insort(sizes, value)
        self.forget(step)

    def forget(self, step: int) -> None:
        """Forget what has left the window of n steps that ends at a step; steps ascend."""
        while self._rows and self._rows[0][0] <= step - self._n:
            for sizes, value in zip(self._sizes, self._rows.popleft()[1].tolist(), strict=True):
                if value == value:  # noqa: PLR0124
                    del sizes[bisect_left(sizes, value)]

    def at(self, step: int, name: str) -> Array:
        """`median` or `mad` of the readings in `(step - n, step]`, whether the window is full or not."""
        self.forget(step)
        return self.median() if name == "median" else np.where(self.count() > 1, self.mad(), np.nan)

    def count(self) -> Array:
        """How many readings each layer has."""
        return np.array([len(sizes) for sizes in self._sizes], np.float64)

    def median(self) -> Array:
        """The median of each layer; NaN without readings."""
        return np.array([_middle(sizes) for sizes in self._sizes], np.float64)

    def mad(self) -> Array:
        """The median absolute deviation of each layer, unscaled; NaN without readings."""
        return np.array([_mad(sizes) if sizes else nan for sizes in self._sizes], np.float64)

    def largest_deviation(self) -> Array:
        """How far the reading farthest from the median lies from it; 0 without readings."""
        ends = [(sizes[0], sizes[-1]) if sizes else (nan, nan) for sizes in self._sizes]
        least, most = np.array(ends, np.float64).reshape(-1, 2).T
        centre = self.median()
        return np.nan_to_num(np.maximum(np.abs(least - centre), np.abs(most - centre)))


class RunningScore:
    """`zscore` of one number per layer, against the readings of the n steps before in order of their size."""

    def __init__(self, n: int, layers: int, log: bool) -> None:
        self._log = log
        self._before = SortedLayers(n, layers)
        self._now: tuple[int, Array] | None = None

    def push(self, step: int, row: Array) -> None:
        """Take a reading; the one before it joins what it is compared with."""
        if self._now is not None:
            self._before.push(*self._now)
        self._now = step, robust.positive_log(row) if self._log else row.copy()

    def at(self, step: int) -> Array | None:
        """The score of the readings at a step, full window or not; None where there are none."""
        if self._now is None or self._now[0] != step:
            return None
        before = self._before
        before.forget(step - 1)
        spread = robust.or_a_third(robust.NORMAL_MAD * before.mad(), before.largest_deviation())
        return windows.score(self._now[1], before.median(), spread, before.count(), log=self._log)


def _mad(ordered: Sequence[float]) -> float:
    """The median absolute deviation of sorted readings, at least one, without sorting the deviations.

    The k + 1 readings nearest to the centre are neighbours, and the farthest of them is one of the ends: the
    first of them is found by bisection.
    """
    centre, count = _middle(ordered), len(ordered)
    k = (count - 1) // 2
    low, high = 0, count - 1 - k
    while low < high:
        middle = (low + high) // 2
        if ordered[middle + k] - centre >= centre - ordered[middle]:
            high = middle
        else:
            low = middle + 1
    smaller = _nearest(ordered, centre, low, k)
    return smaller if count % 2 else (smaller + _nearest(ordered, centre, low, k + 1)) / 2


def _nearest(ordered: Sequence[float], centre: float, first: int, k: int) -> float:
    """The k-th smallest deviation, counted from 0, where it begins at `first` or up to two places before."""
    ends = range(max(first - 2, 0), min(first, len(ordered) - 1 - k) + 1)
    return min(max(abs(ordered[i] - centre), abs(ordered[i + k] - centre)) for i in ends)


def _middle(ordered: Sequence[float]) -> float:
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2 if count else nan
