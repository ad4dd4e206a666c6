"""Functions of the rule language at many steps at once, which lie side by side as layers do.

The window of each step becomes a column of one large window, so that the functions of `series` work on it as
they are. Readings in and results out are plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.rules.values import Array, Mask, Value
from stepguard.series.history import Window
from stepguard.series.trends import RunningTrend, weight

Places = NDArray[np.intp]

_MOST_PATTERNS = 16
"""Ways in which readings may lie before a step: with more of them, steps side by side save nothing."""
_MOST_LAGS = 256
"""Readings of a trend that are compared lag by lag; of more of them, the running form is quicker."""
_MOST_NUMBERS = 4_000_000
"""Numbers in windows that lie side by side; of larger ones, running forms know the answer sooner."""


class Irregular(Exception):
    """The frames are better looked at one by one."""


class Rows(NamedTuple):
    """The readings of a series: what is remembered of it, and behind that what the block adds."""

    steps: NDArray[np.int64]
    values: Array
    """Of shape (rows, *shape)."""
    first: Array
    """Of the shape itself: the step of the first reading, inf where there is none."""
    places: Places
    """Where the readings that the block adds stand in it."""


class Windows:
    """The windows that end at some steps: those in which readings lie alike, side by side."""

    def __init__(self, rows: Rows, now: NDArray[np.int64], reach: int) -> None:
        self._rows, self._now, self._reach = rows, now, reach
        self._end = rows.steps.searchsorted(now, side="right")
        self._begin = rows.steps.searchsorted(now - reach, side="right")
        self._shape = rows.first.shape

    def apply(self, function: Callable[[Window], Array]) -> Array:
        """What a function gives of each window, shape (steps, *shape); it is told that the step is 0."""
        found = np.full((len(self._now), *self._shape), np.nan)
        for sizes in _alike((self._end - self._begin)[:, np.newaxis]):
            rows = self._numbers(sizes)
            before = self._rows.steps[rows] - self._now[sizes, np.newaxis]
            for chosen in _alike(before):
                places = sizes[chosen]
                now = self._now[places].reshape(-1, *(1 for _ in self._shape))
                found[places] = self._side_by_side(
                    function, before[chosen[0]], rows[chosen], self._rows.first - now
                )
        return found

    def apply_steady(self, function: Callable[[Window], Array]) -> Array:
        """The same of one that gives what the readings in a full window say, whenever they were taken."""
        _, these, which = np.unique(
            self._begin * (len(self._rows.steps) + 1) + self._end, return_index=True, return_inverse=True
        )
        each = np.full((len(these), *self._shape), np.nan)
        for sizes in _alike((self._end - self._begin)[these, np.newaxis]):
            rows = self._numbers(these[sizes])
            steps, full = np.arange(-rows.shape[1], 0) + 1, np.full((len(sizes), *self._shape), -np.inf)
            each[sizes] = self._side_by_side(function, steps, rows, full)
        begin = self._now.reshape(-1, *(1 for _ in self._shape)) - self._reach + 1
        return np.where(self._rows.first <= begin, each[which], np.nan)

    def apply_to_two(self, function: Callable[[Array, Array], Array], n: int) -> Array:
        """What a function gives of the reading now and of that n steps ago, as `prev` has it."""
        steps = self._rows.steps
        before = steps.searchsorted(self._now - n, side="right")
        return function(self._newest(self._end, self._now - 1), self._newest(before, self._now - self._reach))

    def _newest(self, end: Places, after: NDArray[np.int64]) -> Array:
        """The last rows before some places, NaN where they are not from after a step."""
        steps, values = self._rows[:2]
        if not len(steps):
            return np.full((len(end), *self._shape), np.nan)
        there = ((end > 0) & (steps[end - 1] > after)).reshape(-1, *(1 for _ in self._shape))
        return np.where(there, values[end - 1], np.nan)

    def apply_alone(self, function: Callable[[Window], Array]) -> Array:
        """The same of a function that is to see each window by itself."""
        steps, readings, first = self._rows[:3]
        found = [
            function(Window(steps[begin:end] - now, readings[begin:end], first - now))
            for begin, end, now in zip(self._begin, self._end, self._now, strict=True)
        ]
        return np.array(found)

    def trend(self) -> Array:
        """`trend` of a number of the run, from all of its readings, as it is kept up to date live."""
        score = self._scores() if len(self._now) else None
        if score is None:
            return self._running_trend()
        count = (self._end - self._begin).astype(np.float64)
        full = (count > 2) & (self._rows.first <= self._now - self._reach + 1)
        with np.errstate(all="ignore"):
            return np.where(full, (score - np.sign(score)) / np.sqrt(weight(count) / 18), np.nan)

    def _scores(self) -> Array | None:
        """Kendall's score of each window, lag by lag: of pairs of readings that are so far apart.

        None where some readings are alike, which the score is corrected for, or windows are long.
        """
        readings = self._rows.values[self._begin[0] : self._end[-1]]
        begin, end = self._begin - self._begin[0], self._end - self._begin[0]
        longest = int((end - begin).max())
        if longest > _MOST_LAGS or not np.isfinite(readings).all():
            return None
        score = np.zeros(len(begin))
        for lag in range(1, longest):
            rises = readings[lag:] > readings[:-lag]
            if (readings[lag:] == readings[:-lag]).any():
                return None
            pairs = len(rises)
            total = np.concatenate(([0], np.cumsum(np.where(rises, 1, -1))))
            score += total[np.minimum(np.maximum(end - lag, begin), pairs)] - total[np.minimum(begin, pairs)]
        return score

    def _running_trend(self) -> Array:
        running, found = RunningTrend(self._reach), np.full(len(self._now), np.nan)
        rows = zip(self._rows.steps.tolist(), self._rows.values.tolist(), strict=True)
        readings = list(rows)[int(self._begin[0]) :] if len(self._now) else []
        place = 0
        for number, (now, end) in enumerate(zip(self._now.tolist(), self._end - self._begin[0], strict=True)):
            for step, value in readings[place:end]:
                running.push(step, value)
            place = int(end)
            if self._rows.first <= now - self._reach + 1:
                found[number] = running.at(now).z()
        return found

    def _numbers(self, windows: Places) -> NDArray[np.intp]:
        """The rows that lie in windows of one size, shape (windows, size)."""
        size = int(self._end[windows[0]] - self._begin[windows[0]])
        return self._begin[windows, np.newaxis] + np.arange(size)

    def _side_by_side(
        self,
        function: Callable[[Window], Array],
        steps: NDArray[np.int64],
        rows: NDArray[np.intp],
        first: Array,
    ) -> Array:
        if rows.size * self._rows.first.size > _MOST_NUMBERS:
            raise Irregular
        columns = self._rows.values[rows.T].reshape(rows.shape[1], first.size)
        return function(Window(steps, columns, first.reshape(-1))).reshape(len(rows), *self._shape)


def _alike(rows: NDArray[np.int64]) -> Iterator[Places]:
    """The places of equal rows, together; Irregular where there are many different ones."""
    if (rows == rows[:1]).all():
        yield np.arange(len(rows))
        return
    different, which = np.unique(rows, axis=0, return_inverse=True)
    if len(different) > _MOST_PATTERNS:
        raise Irregular
    for number in range(len(different)):
        yield np.flatnonzero(which == number)


def _share(value: Value, mask: Mask) -> Value:
    seen = np.count_nonzero(value.known & mask, axis=-1)
    return Value(np.count_nonzero(value.data & mask, axis=-1) / seen, seen > 0)


def _count(value: Value, mask: Mask) -> Value:
    seen = np.count_nonzero(value.known & mask, axis=-1)
    return Value(np.count_nonzero(value.data & mask, axis=-1).astype(np.float64), seen > 0)


def _any(value: Value, mask: Mask) -> Value:
    seen = np.count_nonzero(value.known & mask, axis=-1)
    return Value(np.count_nonzero(value.data & mask, axis=-1) > 0, seen > 0)


def _all(value: Value, mask: Mask) -> Value:
    seen = np.count_nonzero(value.known & mask, axis=-1)
    return Value((np.count_nonzero(value.data & mask, axis=-1) == seen) & (seen > 0), seen > 0)


def _first(value: Value, mask: Mask) -> Value:
    seen = value.known & mask
    return _at(value, seen, seen.argmax(axis=-1))


def _last(value: Value, mask: Mask) -> Value:
    seen = value.known & mask
    return _at(value, seen, seen.shape[-1] - 1 - seen[:, ::-1].argmax(axis=-1))


def _at(value: Value, seen: Mask, place: Places) -> Value:
    data, known = (np.take_along_axis(x, place[:, np.newaxis], axis=-1)[:, 0] for x in (value.data, seen))
    return Value(data, known)


def _worst(value: Value, mask: Mask) -> Value:
    number = value.known & mask & ~np.isnan(value.data)
    largest = np.max(np.where(number, value.data, -np.inf), axis=-1)
    return Value(largest, np.count_nonzero(number, axis=-1) > 0)


OVER_LAYERS: Mapping[str, Callable[[Value, Mask], Value]] = {
    "share": _share,
    "count": _count,
    "any": _any,
    "all": _all,
    "first": _first,
    "last": _last,
    "worst": _worst,
}
"""What `values` makes of the layers of one step, of those of many: shape (steps, layers) in, (steps,) out."""
