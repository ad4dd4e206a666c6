"""Medians in running form: of the last readings of a number of the run, bit for bit those of `robust`."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import nan


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
        if len(self._sizes) < 2:
            return nan
        centre = _middle(self._sizes)
        return _middle(sorted([abs(size - centre) for size in self._sizes]))


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


def _middle(ordered: list[float]) -> float:
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2 if count else nan
