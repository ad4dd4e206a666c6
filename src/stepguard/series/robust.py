"""What windows and detectors are made of: statistics over the first axis, without what is missing (NaN)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepguard.series.history import Array, Window

NORMAL_MAD = 1.482602218505602
"""Median absolute deviation times this estimates the standard deviation of normal noise."""
NORMAL_QUARTILE = 0.8693011096
"""The same for the upper quartile of the absolute deviations."""
MIN_BASELINE = 8
"""Readings below which a spread is not known well enough to judge a value by it."""
_ROUNDING = 2.0**-20
"""A spread below this share of the level is the rounding of float32, not noise."""


def readings(values: Array) -> NDArray[np.int64]:
    """How many readings there are."""
    return np.asarray(np.count_nonzero(~np.isnan(values), axis=0), np.int64)


def mean(values: Array) -> Array:
    """The arithmetic mean."""
    count = readings(values)
    total = np.sum(np.where(np.isnan(values), 0.0, values), axis=0)
    return np.divide(total, count, out=np.full(values.shape[1:], np.nan), where=count > 0)


def median(values: Array) -> Array:
    """The median. Sorting along the first axis is several times as fast as numpy's own median here."""
    ordered, count = _ordered(values)
    return (take(ordered, (count - 1) // 2) + take(ordered, count // 2)) / 2


def upper_quartile(values: Array) -> Array:
    """The reading that three quarters do not exceed: the nearest rank, nothing in between."""
    ordered, count = _ordered(values)
    return take(ordered, (3 * (count - 1) + 2) // 4)


def _ordered(values: Array) -> tuple[Array, NDArray[np.int64]]:
    """Sorted, NaN last, at least one row; and the number of readings, a single one if none is missing."""
    if not len(values):
        values = np.full((1, *values.shape[1:]), np.nan)
    ordered = np.sort(values, axis=0)
    if np.isnan(ordered[-1]).any():
        return ordered, np.maximum(readings(values), 1)
    return ordered, np.asarray(len(values))


def mad(values: Array) -> Array:
    """The median absolute deviation from the median, unscaled."""
    return median(np.abs(values - median(values)))


def spread(deviations: Array, *, quartile: bool = False) -> Array:
    """The standard deviation of normal noise whose deviations have the same median size, or upper quartile.

    The quartile sees what the median does not: that a series now and then is elsewhere. Where so many
    readings are equal that it is 0, a third of the largest deviation stands in: what is to count as far away
    must then lie beyond all that was seen.
    """
    sizes = np.abs(deviations)
    typical = NORMAL_QUARTILE * upper_quartile(sizes) if quartile else NORMAL_MAD * median(sizes)
    if not np.any(typical == 0):
        return typical
    return or_a_third(typical, np.max(np.nan_to_num(sizes), axis=0, initial=0.0))


def or_a_third(typical: Array, largest: Array) -> Array:
    """The typical spread, or a third of the largest deviation where it is 0."""
    return np.where(typical == 0, largest / 3, typical)


def rounding(centre: Array, *, log: NDArray[np.bool_]) -> Array:
    """The least spread that is not float32's rounding; `log` says where the centre is a logarithm."""
    return _ROUNDING * np.where(log, 1.0, np.abs(centre))


def newest(values: Array) -> Array:
    """The last reading that each layer has."""
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    return take(values, len(values) - 1 - np.argmax(~np.isnan(values[::-1]), axis=0))


def theil_sen(steps: Array, values: Array) -> Array:
    """The median of the slopes of all pairs."""
    early, late = np.triu_indices(len(values), k=1)
    return median((values[late] - values[early]) / (steps[late] - steps[early]))


def positive_log(values: Array) -> Array:
    """The natural logarithm of what is above 0, NaN elsewhere."""
    return np.log(values, out=np.full_like(values, np.nan), where=values > 0)


def take(values: Array, rows: NDArray[np.int64]) -> Array:
    """For each layer the value in its own row; or one row, where `rows` is a single number."""
    return values[rows] if rows.ndim == 0 else np.take_along_axis(values, rows[np.newaxis], axis=0)[0]


def thin(x: Window, most: int) -> tuple[Array, Array]:
    """At most `most` of the readings that each layer has, evenly chosen: their steps and their values.

    Values of shape (m, *shape), where a layer with fewer readings than others ends in NaN; steps of a shape
    that broadcasts to it.
    """
    missing = np.isnan(x.values)
    if not missing.any():
        rows, _ = _even(np.asarray(len(x.values)), most)
        return column(x.steps[rows], x.values.ndim).astype(np.float64), x.values[rows]
    order = np.argsort(missing, axis=0, kind="stable")  # the readings of each layer come first, in order
    chosen, there = _even(readings(x.values), most)
    rows = np.take_along_axis(order, chosen, axis=0)
    return x.steps[rows].astype(np.float64), np.where(
        there, np.take_along_axis(x.values, rows, axis=0), np.nan
    )


def _even(count: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each layer positions among its `count` readings, evenly spread, and which of them exist."""
    places = column(np.arange(min(most, np.max(count, initial=0))), count.ndim + 1)
    spread = places * (count - 1) // (most - 1)
    return np.where(count > most, spread, np.minimum(places, np.maximum(count - 1, 0))), places < count


def column(values: NDArray[np.int64], ndim: int) -> NDArray[np.int64]:
    """As a column that broadcasts over the layers of an array with `ndim` axes."""
    return np.reshape(values, (-1,) + (1,) * (ndim - 1))
