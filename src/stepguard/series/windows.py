"""Statistics over the last steps: plain functions of a window, for all layers at once.

Every function takes a `Window`, the step that is now, and a length `n` in *steps*, so that a verdict does not
depend on how often readings were taken. It cuts its own steps out of a window that covers more, and returns
float64 of the window's shape, NaN where there is no value. A window of n steps is full at a layer where the
readings began at or before its first step; where it is not full there is no value, except for `prev`, `delta`
and `growth`, which need two readings only. Readings that are missing are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.series import robust
from stepguard.series.history import Array, Window

SLOPE_READINGS = 20
TREND_READINGS = 32
"""How many evenly chosen readings `slope` and `trend` look at: their work grows with the square."""
STALE = 100
"""How many steps longer than it is away a reading may stand for the one n steps ago."""


def _itself(n: int) -> int:
    return n


def _and_now(n: int) -> int:
    return n + 1


def _and_stale(n: int) -> int:
    return 2 * n + STALE


def _four_times(n: int) -> int:
    return 4 * n


REACH: Mapping[str, Callable[[int], int]] = {
    **dict.fromkeys(("mean", "median", "min", "max", "std", "mad", "slope", "trend"), _itself),
    **dict.fromkeys(("held", "early"), _itself),
    **dict.fromkeys(("crash", "plateau", "drift"), _itself),
    **dict.fromkeys(("zscore", "spike"), _and_now),
    **dict.fromkeys(("prev", "delta", "growth"), _and_stale),
    "ewma": _four_times,
}
"""How many steps the window must cover, by function or detector, for its length argument."""


STEADY = frozenset({"mean", "median", "min", "max", "std", "mad", "slope", "trend"})
"""Functions that give the same at two steps whose windows hold the same readings, once these are full."""


def prev(x: Window, step: int, n: int) -> Array:
    """The newest reading at or before `step - n`, and after `step - 2 n - 100`: what is older is stale."""
    return robust.newest(x.cut(step - n, n + STALE).values)


def delta(x: Window, step: int, n: int) -> Array:
    """The reading now minus `prev`."""
    return _delta(x.now(step), prev(x, step, n))


def _delta(now: Array, before: Array) -> Array:
    return now - before


def growth(x: Window, step: int, n: int) -> Array:
    """The reading now over `prev`, a factor; no value where `prev` is 0 or either is negative."""
    return _growth(x.now(step), prev(x, step, n))


def _growth(now: Array, before: Array) -> Array:
    senseless = (before <= 0) | (now < 0)
    if not np.count_nonzero(senseless):
        return now / before
    return np.divide(now, before, out=np.full_like(now, np.nan), where=~senseless)


OF_LAYERS: Mapping[str, Callable[[Array, Array], Array]] = {
    "prev": lambda now, before: before.copy(),
    "delta": _delta,
    "growth": _growth,
}
"""What is made of the readings now and of `prev`, by function."""

OF_RUN: Mapping[str, Callable[[float | None, float | None], float | None]] = {
    "prev": lambda now, before: before,
    "delta": lambda now, before: None if now is None or before is None else now - before,
    "growth": lambda now, before: (
        None if now is None or before is None or before <= 0 or now < 0 else now / before
    ),
}
"""The same for numbers of the run: without numpy, None for no value."""


def mean(x: Window, step: int, n: int) -> Array:
    """The arithmetic mean of the last n steps."""
    return _where_full(x, step, n, robust.mean(x.cut(step, n).values))


def median(x: Window, step: int, n: int) -> Array:
    """The median of the last n steps."""
    return _where_full(x, step, n, robust.median(x.cut(step, n).values))


def min(x: Window, step: int, n: int) -> Array:
    """The least reading of the last n steps."""
    return _where_full(x, step, n, _reduced(np.fmin, x.cut(step, n).values))


def max(x: Window, step: int, n: int) -> Array:
    """The largest reading of the last n steps."""
    return _where_full(x, step, n, _reduced(np.fmax, x.cut(step, n).values))


def std(x: Window, step: int, n: int) -> Array:
    """The standard deviation of the last n steps (of the population), from at least two readings."""
    values = x.cut(step, n).values
    variance = robust.mean((values - robust.mean(values)) ** 2)
    return _where_full(x, step, n, np.where(robust.readings(values) > 1, np.sqrt(variance), np.nan))


def mad(x: Window, step: int, n: int) -> Array:
    """The median absolute deviation of the last n steps, unscaled, from at least two readings."""
    values = x.cut(step, n).values
    return _where_full(x, step, n, np.where(robust.readings(values) > 1, robust.mad(values), np.nan))


def ewma(x: Window, step: int, n: int) -> Array:
    """The exponentially weighted mean of the last 4 n steps.

    Weights are `(1 - alpha) ** age`, age in steps and alpha = 2 / (n + 1), divided by their sum.
    """
    recent = x.cut(step, 4 * n)
    weights = (1 - 2 / (n + 1)) ** (step - recent.steps).astype(np.float64)
    missing = np.isnan(recent.values)
    weighted = np.tensordot(weights, np.where(missing, 0.0, recent.values), axes=1)
    total = np.tensordot(weights, ~missing, axes=1)
    average = np.divide(weighted, total, out=np.full_like(x.first, np.nan), where=total > 0)
    return _where_full(x, step, n, average)


def slope(x: Window, step: int, n: int) -> Array:
    """The change per step over the last n steps: the median of the slopes of all pairs (Theil-Sen).

    From 20 readings at most, evenly chosen, and two at least.
    Sen (1968), Estimates of the regression coefficient based on Kendall's tau.
    """
    steps, values = robust.thin(x.cut(step, n), SLOPE_READINGS)
    return _where_full(x, step, n, robust.theil_sen(steps, values))


def trend(x: Window, step: int, n: int) -> Array:
    """How surely x rises (positive) or falls over the last n steps: Mann-Kendall's z, corrected for ties.

    From three readings at least, of a number per layer from 32 at most, evenly chosen; 0 where as many pairs
    rise as fall, also where all are equal. Readings that depend on their neighbours make it larger than it
    should be.
    Mann (1945), Nonparametric tests against trend.
    """
    _, values = robust.thin(x.cut(step, n), TREND_READINGS)
    count = robust.readings(values).astype(np.float64)
    score = _kendall_score(values)
    variance = (_kendall_weight(count) - _ties(values)) / 18
    z = (score - np.sign(score)) / np.sqrt(np.where(score == 0, 1.0, variance))
    return _where_full(x, step, n, np.where(count > 2, z, np.nan))


def zscore(x: Window, step: int, n: int, *, log: bool = False) -> Array:
    """How many robust standard deviations the reading now lies above the median of the n steps before it.

    The standard deviation is that of normal noise with the same median absolute deviation; where half of the
    readings are equal, a third of their largest deviation. From 8 readings at least; no value where all are
    equal, since that is no evidence of a spread.

    With `log`, for what is positive by its nature, all this is done on the logarithm, and readings of 0 are
    left out. Iglewicz and Hoaglin (1993), How to detect and handle outliers.

    Above 8 at two readings running, with n = 100, on the noises of `detectors`: at most 0.023 false alarms
    per 1,000 steps (t(3); 0.003 of the logarithm), and growth by four times a step is seen at its second.
    Guarantee: none.
    """
    before, current = x.cut(step - 1, n).values, x.now(step)
    if log:
        before, current = robust.positive_log(before), robust.positive_log(current)
    centre = robust.median(before)
    z = score(current, centre, robust.spread(before - centre), robust.readings(before), log=log)
    return _where_full(x, step - 1, n, z)


def score(current: Array, centre: Array, spread: Array, count: NDArray[Any], *, log: bool) -> Array:
    """`zscore` of the readings now, from centre and spread of `count` readings before, all of one shape."""
    known = (spread > 0) & (count >= robust.MIN_BASELINE)
    least = robust.rounding(centre, log=np.asarray(log))
    return (current - centre) / np.where(known, np.maximum(spread, least), np.nan)


def held(x: Window, step: int, n: int, of: int) -> Array:
    """Whether at least `n` of the readings of the last `of` steps are true: 1.0, 0.0, or NaN for unknown.

    x holds truths: 1.0 is true, 0.0 false, NaN unknown, which does not count as true. Fewer than n is false
    once the window of `of` steps is full, and unknown before. Where readings are taken every tenth step, the
    last 100 steps hold ten of them.
    """
    true = np.count_nonzero(x.cut(step, of).values == 1.0, axis=0)
    return np.where(true >= n, 1.0, np.where(x.full(step, of), 0.0, np.nan))


def early(x: Window, step: int, n: int) -> Array:
    """The median of the first n steps of all: the same from then on, no value before.

    x holds the first n steps from the first reading on, wherever `step` is.
    """
    return _where_full(x, step, n, robust.median(x.values))


def _where_full(x: Window, step: int, n: int, result: Array) -> Array:
    return np.where(x.full(step, n), result, np.nan)


def _reduced(ufunc: np.ufunc, values: Array) -> Array:
    """The least or largest reading; NaN where there is none."""
    return ufunc.reduce(values, axis=0) if len(values) else np.full(values.shape[1:], np.nan)


def _kendall_weight(count: Array) -> Array:
    return count * (count - 1) * (2 * count + 5)


def _kendall_score(values: Array) -> Array:
    score = np.zeros(values.shape[1:])
    for lag in range(1, len(values)):
        late, early = values[lag:], values[:-lag]
        score += np.count_nonzero(late > early, axis=0) - np.count_nonzero(late < early, axis=0)
    return score


def _ties(values: Array) -> Array:
    """Kendall's weight of the groups of equal readings: (t - 1)(2 t + 5) for each of a group's t members."""
    if not np.any(np.diff(np.sort(values, axis=0), axis=0) == 0):
        return np.zeros(values.shape[1:])
    alike = np.count_nonzero(values[:, np.newaxis] == values[np.newaxis], axis=0).astype(np.float64)
    return np.where(alike > 0, (alike - 1) * (2 * alike + 5), 0.0).sum(axis=0)
