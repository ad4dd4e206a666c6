"""Mann-Kendall's z of a number of the run in running form: a step costs little however long the window."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from math import copysign, nan, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray


class RunningTrend:
    """`trend` of the last n steps of a number of the run, from all of its readings."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._readings: deque[tuple[int, float]] = deque()
        self._sizes: list[float] = []
        self._score = 0
        """Pairs of readings that rise, less those that fall."""
        self._ties = 0

    def push(self, step: int, row: float) -> None:
        """Take a reading."""
        self.forget(step - self._n)
        low, high = bisect_left(self._sizes, row), bisect_right(self._sizes, row)
        self._score += low - (len(self._sizes) - high)
        self._ties += weight(high - low + 1) - weight(high - low)
        self._readings.append((step, row))
        self._sizes.insert(high, row)

    def forget(self, step: int) -> None:
        """Forget what was read at or before a step."""
        while self._readings and self._readings[0][0] <= step:
            value = self._readings.popleft()[1]
            low, high = bisect_left(self._sizes, value), bisect_right(self._sizes, value)
            self._score -= (len(self._sizes) - high) - low
            self._ties += weight(high - low - 1) - weight(high - low)
            del self._sizes[low]

    def at(self, step: int) -> RunningTrend:
        """It with the readings in `(step - n, step]`; steps asked for ascend."""
        self.forget(step - self._n)
        return self

    def z(self) -> float:
        """The score in standard deviations, corrected for ties; NaN of too few readings."""
        if len(self._sizes) < 3:
            return nan
        if not self._score:
            return 0.0
        variance = (weight(len(self._sizes)) - self._ties) / 18
        return (self._score - copysign(1, self._score)) / sqrt(variance)


Count = TypeVar("Count", int, NDArray[np.float64])


def weight(count: Count) -> Count:
    """Kendall's weight of a group of readings."""
    return count * (count - 1) * (2 * count + 5)
