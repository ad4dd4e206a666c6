"""Detectors: functions of a window that say at which layers something happens, and what they measured.

They look upwards only: a series that falls never fires one of them, but for `plateau`, which waits for the
fall to end. A ratio counts only against the series' own spread, so that tiny numbers do not fire by being
tiny. Window and steps are as in `windows`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.series import robust
from stepguard.series.history import Array, Window
from stepguard.series.peaks import highest

Truth = NDArray[np.bool_]

BLOCKS = 20
"""`plateau` and `drift` cut their window into so many equal stretches and look at their medians."""
RECENT = 6
_SURE_ALONE = 35.0
_SURE_TWICE = (4.0, 6.0)
_SURE_SHIFT = 8.0
_SURE_CRASH = 9.0
_SURE_FALL = 4.0
_SLOPE_ERROR = 1.05 * (12 / BLOCKS) ** 0.5
"""Standard error of a Theil-Sen line's rise over all blocks, in standard deviations of one block's median."""


class Detection(NamedTuple):
    """What a detector says at each layer; all arrays have the window's shape."""

    holds: Truth
    """False where it is not known."""
    known: Truth
    """Where there were readings enough to tell."""
    measures: dict[str, Array]
    """What it measured, by name."""


def crash(
    x: Window, step: int, *, rise: float, fall: float, within: int, young: float = _SURE_CRASH
) -> Detection:
    """The rising crash: within the last steps x rose from a trough to a peak, and fell from there till now.

    A peak is the lesser of two readings in a row, so one reading alone is none; its trough is the second
    least reading above 0 before it, the least while the window is not full. Holds where a peak is at least
    `rise` times its trough and at least `fall` times the reading now, and where both, in logarithms, are 9
    spreads of the series' own noise: the robust standard deviation of its second differences, which a steady
    climb does not widen; where a reading is not above 0 there are no logarithms, and the factors decide.

    While the window is not full it must be `young` spreads. With `young=0` the factors alone decide there: a
    crash in the first steps of a run has hardly more readings than it takes to see it, and with 9 spreads
    every second one is not seen. One series is not told from noise so, but many together are: in a rule
    `young` is 0 inside `share`, `count` and `all`, and 9 elsewhere.

    Known where there is a reading now. Measures `rise`, `fall` and `peak` of the highest such peak, NaN where
    nothing rose that much or x is nowhere near a fall.

    False alarms at rise=3, fall=3: at within=60 none, at within=100 0.005 on t(3), none on the others. In a
    young window 0.005 and 0.033 on t(3), 0.015 and 0.020 on log-normal, none on the others; in that of
    `share(crash(x)) > 0.5` over ten layers 0.8 and 3.3 on log-normal, none on the others. A rise in 10 steps
    with a fall after it is seen at the first step of the fall.

    Source: fast.ai, From deep learning foundations to stable diffusion, lesson 16. Guarantee: none.
    """
    values, current, full = x.cut(step, within).values, x.now(step), x.full(step, within)
    # Cheap, and enough at nearly every step: what is nowhere near a fall is no crash.
    near = np.asarray(np.fmax.reduce(values, axis=0, initial=-np.inf) >= fall * current)
    holds = np.zeros_like(near)
    peak, trough = (np.full(near.shape, np.nan) for _ in range(2))
    if near.any():
        found = _crashed(values[:, near], current[near], full[near], _Factors(rise, fall, young))
        holds[near], peak[near], trough[near] = found
    measures = {"rise": peak / trough, "fall": _fold(peak, current), "peak": peak}
    return Detection(holds, ~np.isnan(current), measures)


class _Factors(NamedTuple):
    """What a crash takes: see there."""

    rise: float
    fall: float
    young: float


def _crashed(values: Array, current: Array, full: Truth, least: _Factors) -> tuple[Truth, Array, Array]:
    """Whether each layer has crashed, its highest peak, and the trough of that."""
    values, spreads = _packed(values), np.where(full, _SURE_CRASH, least.young)
    peak, trough = highest(values, full, np.full(full.shape, least.rise))
    holds = peak >= least.fall * current
    noisy = (spreads > 0) & holds & (np.fmin.reduce(values, axis=0, initial=np.inf) > 0)
    if noisy.any():
        clear = np.exp(spreads[noisy] * _jitter(values[:, noisy]))
        peak[noisy], trough[noisy] = highest(values[:, noisy], full[noisy], np.maximum(least.rise, clear))
        holds[noisy] = peak[noisy] >= np.maximum(least.fall, clear) * current[noisy]
    return holds, peak, trough


def _packed(values: Array) -> Array:
    """Each layer's readings without gaps between them, NaN before the first."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    return np.take_along_axis(values, np.argsort(~missing, axis=0, kind="stable"), axis=0)


def _jitter(values: Array) -> Array:
    """The spread of the logarithms from one reading to the next, 0 where it is not known."""
    logarithms = robust.positive_log(values)
    bends = np.abs(logarithms[2:] - 2 * logarithms[1:-1] + logarithms[:-2])
    return np.nan_to_num(robust.NORMAL_MAD / 6**0.5 * robust.median(bends))


def spike(x: Window, step: int, n: int, by: float) -> Detection:
    """A jump: x is far above the n steps before, at least `by` times their median.

    With z the distance from that median in robust standard deviations of these n steps, it needs z of 35 now,
    or z of 6 now and 5 at the reading before. Logarithms are taken where all readings are above 0. The
    spread is taken around the line of a falling series, the median is not, so a falling loss neither fires it
    nor hides a jump. Where x can be 0 or below, the ratio is 1 + distance / max(abs(median), spread).

    Known where there is a reading now and the window is full, with 8 readings at least whose median is not 0:
    of nothing there is no multiple. Measures `ratio` and `baseline`, the median, where x comes near a spike.

    False alarms at n=100, by=2: 0.035 on t(3), none on the others; around 0: 0.038 on t(3), 0.008 on AR(1)
    0.9. At n=50 up to 0.045. A step of four times, or growth by four times a step, is seen at its second.

    Source: robust z-scores as in Iglewicz and Hoaglin (1993); twice in a row as in the Western Electric rules
    (1956). Guarantee: none.
    """
    before, current = x.cut(step - 1, n), x.now(step)
    enough = robust.readings(before.values) >= robust.MIN_BASELINE
    known = x.full(step - 1, n) & enough & ~np.isnan(current)
    level = robust.median(before.values)
    known &= level != 0
    # Cheap, and enough at nearly every step: what is nowhere near `by` times the level is no spike.
    near = known & (current - level >= (by - 1) * np.abs(level) / 2)
    if not near.any():
        return _nothing(known)
    base = _baseline(before, falling=True)
    z, earlier = base.distance(current), base.distance(robust.newest(before.values))
    ratio = base.ratio(current)
    sure = (z >= _SURE_ALONE) | ((earlier >= _SURE_TWICE[0]) & (z >= _SURE_TWICE[1]))
    return Detection(near & sure & (ratio >= by), known, _measures(near, ratio, base.level))


def plateau(x: Window, step: int, n: int, by: float) -> Detection:
    """No progress: over the last n steps x has surely fallen by less than `by`, a share of its level.

    The fall is that of the Theil-Sen line through the medians of 20 equal stretches, over their own median.
    "Surely" is four standard errors, from the spread around that line: on noisy series it stays silent until
    n is long enough. A rising series holds as well.

    Known where the window is full, each of the stretches has a reading, and the level is not 0. Measures
    `fall` and `level`.

    False alarms at n=200, by=0.2 on a fall by 0.4 a window: 0.015 on log-normal, 0.005 on AR(1) 0.9, none on
    the others. The end of the fall is seen after 168 steps.

    Source: Sen (1968); the question is that of an equivalence test, Schuirmann (1987). Guarantee: none.
    """
    stretches = medians(x, step, n)
    times = robust.column(np.arange(BLOCKS), stretches.ndim).astype(np.float64)
    slope, level = robust.theil_sen(times, stretches), robust.median(stretches)
    line = level + slope * (times - np.mean(times))
    error = _SLOPE_ERROR * robust.spread(stretches - line, quartile=True)
    known = x.full(step, n) & ~np.isnan(stretches).any(axis=0) & (level != 0)
    scale = np.where(known, np.abs(level), np.nan)
    fall = -slope * BLOCKS / scale
    holds = fall + _SURE_FALL * error / scale < by
    return Detection(known & holds, known, {"fall": fall, "level": level})


def drift(x: Window, step: int, n: int, by: float) -> Detection:
    """A slow rise: the newest part of the last n steps lies above all that came before, `by` times or more.

    The window is cut into 20 equal stretches. The median of each of the newest 6 must be above those of the
    14 before, the levels of both apart by 8 robust standard deviations of the 14 around their line, and by a
    factor of `by`. Logarithms and ratio are as in `spike`. After a step it holds for some stretches only,
    during a rise throughout.

    Known where the window is full, each of the stretches has a reading, and the median before is not 0.
    Measures `ratio` and `baseline`, that median, where the newest part lies above.

    False alarms at n=200, by=1.5: none; at n=100, by=2 none, and around 0: 0.035 on AR(1) 0.9. At n=200 a
    step of four times is seen after 54 steps, a doubling every 100 steps after 91, of one in a hundred 144.

    Source: precedence tests, Nelson (1963); medians of stretches against the dependence of neighbours.
    Guarantee: on exchangeable noise of any distribution, at a given step at most 6! 14! / 20! = 2.6e-5.
    """
    stretches = medians(x, step, n)
    old, new = stretches[:-RECENT], stretches[-RECENT:]
    level = robust.median(new)
    known = x.full(step, n) & ~np.isnan(stretches).any(axis=0) & (robust.median(old) != 0)
    above = known & (np.min(new, axis=0) > np.max(old, axis=0))
    if not above.any():
        return _nothing(known)
    base = _baseline(Window(np.arange(len(old)), old, x.first), falling=False)
    ratio = base.ratio(level)
    sure = base.distance(level) >= _SURE_SHIFT
    return Detection(above & sure & (ratio >= by), known, _measures(above, ratio, base.level))


def _measures(where: Truth, ratio: Array, baseline: Array) -> dict[str, Array]:
    """What was measured at layers that came near; NaN at the others."""
    return {name: np.where(where, x, np.nan) for name, x in (("ratio", ratio), ("baseline", baseline))}


def _nothing(known: Truth) -> Detection:
    unmeasured = np.full(known.shape, np.nan)
    return Detection(np.zeros_like(known), known, _measures(known, unmeasured, unmeasured))


class _Baseline(NamedTuple):
    """Where a series lies and how much it varies; in logarithms where `positive`."""

    positive: Truth
    centre: Array
    spread: Array

    @property
    def level(self) -> Array:
        """The centre, as x itself is measured."""
        return np.exp(self.centre, out=np.array(self.centre), where=self.positive)

    def distance(self, values: Array) -> Array:
        """How far above the centre, in spreads; NaN for what is not above 0 where all was."""
        known = np.where(self.spread > 0, self.spread, np.nan)
        return (_scaled(values, self.positive) - self.centre) / known

    def ratio(self, values: Array) -> Array:
        """How many times the level, or one plus the distance over the larger of level and spread."""
        level = self.level
        scale = np.where(self.positive, level, np.maximum(np.abs(level), self.spread))
        return 1 + (values - level) / np.where(scale > 0, scale, np.nan)


def _baseline(x: Window, *, falling: bool) -> _Baseline:
    """The median, and the spread around the line through it; with `falling` only where that line falls."""
    positive = ~np.any(x.values <= 0, axis=0)
    values = _scaled(x.values, positive)
    centre, slope = robust.median(values), np.nan_to_num(_slope(x.steps, values))
    slope = np.minimum(slope, 0.0) if falling else slope
    ages = robust.column(x.steps, values.ndim) - np.mean(x.steps) if len(x.steps) else values
    spread = robust.spread(values - (centre + slope * ages), quartile=True)
    return _Baseline(positive, centre, np.maximum(spread, robust.rounding(centre, log=positive)))


def _scaled(values: Array, positive: Truth) -> Array:
    logarithms = robust.positive_log(values)
    return logarithms if positive.all() else np.where(positive, logarithms, values)


def _slope(steps: NDArray[np.int64], values: Array) -> Array:
    """The slope between the medians of the first and of the last third of the steps: quick, and robust."""
    if not len(steps):
        return np.full(values.shape[1:], np.nan)
    third = (steps[-1] - steps[0]) / 3
    first, last = steps <= steps[0] + third, steps >= steps[-1] - third
    apart = np.maximum(float(np.mean(steps[last])) - float(np.mean(steps[first])), 1)
    return (robust.median(values[last]) - robust.median(values[first])) / apart


def medians(x: Window, step: int, n: int) -> Array:
    """Medians of the equal stretches of the last n steps, shape (BLOCKS, *shape); NaN where one is empty."""
    edges = step - n + np.arange(BLOCKS + 1) * n // BLOCKS
    rows = np.searchsorted(x.steps, edges, side="right")
    sizes = np.diff(rows)
    if sizes[0] and (sizes == sizes[0]).all():
        values = x.values[rows[0] : rows[-1]]
        return robust.median(np.moveaxis(values.reshape(BLOCKS, sizes[0], *values.shape[1:]), 1, 0))
    return np.stack([robust.median(x.values[a:b]) for a, b in pairwise(rows)])


def _fold(above: Array, below: Array) -> Array:
    """How many times `below` goes into `above`; inf where nothing, or less, is left."""
    return np.divide(above, below, out=np.where(np.isnan(above + below), np.nan, np.inf), where=below > 0)
