"""From samples of many layers to their signals, all layers at once, on the host. No torch.

The rooms for what lies between are made once: at the sizes at hand a fresh array costs more than what is
computed in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.signals import HIST_BINS, HIST_TOP

TINY = 0.01
DORMANT = 0.025
"""ReDo (arXiv 2302.12902): a unit whose mean abs(x) is at most this share of the layer's is dormant."""

REDUCED = (
    *("act.mean", "act.std", "act.rms", "act.near_zero", "act.tiny"),
    *("act.variation", "act.dead", "act.dormant", "act.saturated"),
)
"""The signals that come from samples, in the order in which a Reduction gives them."""

Floats = NDArray[np.floating]
Truths = NDArray[np.bool_]
_BINS = HIST_BINS + 1
_AT_ONCE = 16 * 4096
"""Elements that are reduced together: few enough for the cache, so many that calls cost little."""
_SAFE = 35
"""Numbers up to e to this power, and from one over it, have squares that single precision holds well."""


class RowShape(NamedTuple):
    """What a row of samples holds."""

    valid: int
    """Elements; what comes behind them does not count."""
    pairs: int
    """So many elements at the beginning, each with its partner so many places behind it."""
    units: int
    bounds: tuple[float, float] | None
    """The output is flat at and beyond these; None if it is nowhere."""


class _Room:
    """What lies between samples and signals, for some rows at a time: small enough to stay in the cache."""

    def __init__(self, rows: int, width: int, dtype: np.dtype[np.floating]) -> None:
        self.floats, self.others = np.empty((2, rows, width), dtype)
        self.truths = np.empty((rows, width), np.bool_)
        self.bins, self.wide_bins = np.empty((rows, width), np.uint32), np.empty((rows, width), np.intp)


class Reduction:
    """Reduces samples of fixed shapes; `width` is the length of a row.

    Sums are taken in `dtype`, and in double precision where that is too narrow.
    """

    def __init__(self, rows: Sequence[RowShape], width: int, dtype: np.dtype[np.floating]) -> None:
        at_once = min(max(_AT_ONCE // width, 1), len(rows))
        room = _Room(at_once, width, dtype)
        self._blocks = [
            _Block(start, rows[start : start + at_once], width, room)
            for start in range(0, len(rows), at_once)
        ]
        self._found = np.empty((len(REDUCED), len(rows)))
        self._hist = np.empty((len(rows), _BINS), np.int32)
        self.tails = np.empty(len(rows))
        """Fourth moment over the square of the second of each row, by the last call."""

    def __call__(self, values: Floats, units: Floats) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Reduce samples of shape [layers, width] and sums of abs(x) of shape [layers, units].

        Both hold zeros behind what counts. Returns the signals REDUCED, shape [signals, layers], NaN where a
        layer has no such signal, and the histograms, shape [layers, bins]; the next call overwrites them.
        """
        with np.errstate(all="ignore"):
            for block in self._blocks:
                rows = block.rows
                self.tails[rows] = block(values[rows], units[rows], self._found[:, rows], self._hist[rows])
        return self._found, self._hist


class _Block:
    """Some rows, reduced together."""

    def __init__(self, start: int, rows: Sequence[RowShape], width: int, room: _Room) -> None:
        self.rows = slice(start, start + len(rows))
        valid, pairs, units = np.array([row[:3] for row in rows]).T
        self._valid, self._pairs, self._units = (x.astype(np.float64) for x in (valid, pairs, units))
        self._padding = width - valid
        self._paired, self._filled = _groups(pairs), _groups(valid)
        self._widest = int(units.max(initial=0))
        self._room, self._other = room.floats[: len(rows)], room.others[: len(rows)]
        self._truth = room.truths[: len(rows)]
        self._bins, self._wide_bins = room.bins[: len(rows)], room.wide_bins[: len(rows)]
        self._offsets = (_BINS * np.arange(len(rows), dtype=np.uint32))[:, None]
        self._bounded = [i for i, row in enumerate(rows) if row.bounds is not None]
        self._bounds = np.array([rows[i].bounds for i in self._bounded]).reshape(-1, 2, 1)
        self._mask = np.arange(width) < valid[self._bounded, None]

    def __call__(self, values: Floats, units: Floats, found: Floats, hist: NDArray[np.int32]) -> Floats:
        """Reduce these rows into `found` and `hist`; return their `tails`."""
        mean, std, rms, near_zero, tiny, variation, dead, dormant, saturated = found
        mean[:], std[:], apart = self._moments(values)
        self._look_again(values, mean, std, apart)
        rms[:] = np.hypot(mean, std)
        finite = np.isfinite(rms)
        variation[:] = np.sqrt(apart / (2 * self._pairs)) / rms
        size = np.abs(values, out=self._room)
        tiny[:] = np.where(finite, self._few(size, TINY * rms) / self._valid, np.nan)
        squares = np.multiply(size, size, out=self._other)
        tails = _squares(squares) * self._valid / np.square(rms * rms * self._valid)
        hist[:] = self._histogram(size, finite)
        near_zero[:] = (hist[:, 0] + hist[:, 1]) / self._valid
        dead[:], dormant[:] = self._judge(units[:, : self._widest])
        saturated[:] = self._saturated(values) if self._bounded else np.nan
        return tails

    def _moments(self, values: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean, std and the sum of squared differences of the pairs of each row."""
        mean = values.sum(1) / self._valid
        centred = np.subtract(values, mean[:, None].astype(values.dtype), out=self._room)
        for rows, count in self._filled:
            centred[rows, count:] = 0
        std = np.sqrt(_squares(centred) / self._valid)
        apart = np.empty(len(values))
        for rows, count in self._paired:
            first, partner = values[rows, :count], values[rows, count : 2 * count]
            apart[rows] = _squares(np.subtract(first, partner, out=self._room[: len(first), :count]))
        return mean, std, apart

    def _look_again(self, values: Floats, mean: Floats, std: Floats, apart: Floats) -> None:
        """Take the moments in double precision where squares of finite numbers leave the single one."""
        if values.dtype == np.float64 or (abs(np.log(std)) < _SAFE).all():
            return
        for row in np.flatnonzero(~(np.isfinite(std) & (std > np.exp(-_SAFE))) & np.isfinite(mean)):
            wide, count = values[row, : int(self._valid[row])].astype(np.float64), int(self._pairs[row])
            mean[row], std[row] = wide.mean(), wide.std()
            apart[row] = np.square(wide[:count] - wide[count : 2 * count]).sum()

    def _few(self, size: Floats, level: Floats) -> NDArray[np.intp]:
        """How many abs(x) of each row are at most at the row's level."""
        few = np.less_equal(size, level[:, None].astype(size.dtype), out=self._truth)
        # Eight truths at once: a byte holds the count of eight words.
        words = few.view(np.uint64).reshape(len(few), 8, -1).sum(1)
        return words.view(np.uint8).sum(1, dtype=np.int32) - self._padding

    def _histogram(self, size: Floats, finite: Truths) -> NDArray[np.intp]:
        """Counts of abs(x) in equal bins, those above and NaN in the last; overwrites its argument."""
        size *= HIST_BINS / HIST_TOP
        if not finite.all():
            size[~finite] = np.fmin(size[~finite], HIST_BINS)  # of a NaN, too, the minimum is the other
        bins = self._bins
        # What no int32 can hold becomes its lowest or highest number: as an unsigned one, both are large.
        np.copyto(bins.view(np.int32), size, casting="unsafe")
        np.minimum(bins, np.uint32(HIST_BINS), out=bins)
        np.copyto(self._wide_bins, np.add(bins, self._offsets, out=bins), casting="unsafe")
        hist = np.bincount(self._wide_bins.ravel(), minlength=_BINS * len(size)).reshape(-1, _BINS)
        hist[:, 0] -= self._padding
        return hist

    def _judge(self, units: Floats) -> NDArray[np.float64]:
        """Shares of dead and of dormant units, shape [2, layers]."""
        padding = units.shape[1] - self._units
        level = DORMANT * units.sum(1) / self._units
        levels = np.array((np.zeros(len(level)), level))[:, :, None]
        counts = (units <= levels).sum(2)
        return np.where(np.isfinite(level), (counts - padding) / self._units, np.nan)

    def _saturated(self, values: Floats) -> Floats:
        """Share of elements at or beyond the bounds of their row; NaN where there are none."""
        shares = np.full(len(values), np.nan)
        some, low, high = values[self._bounded], self._bounds[:, 0], self._bounds[:, 1]
        flat = ((some <= low) | (some >= high)) & self._mask
        shares[self._bounded] = np.count_nonzero(flat, axis=1) / self._valid[self._bounded]
        return shares


def _groups(counts: NDArray[np.intp]) -> list[tuple[slice | NDArray[np.intp], int]]:
    """The rows of each count; as a slice where they stand together, since that needs no copy."""
    groups: list[tuple[slice | NDArray[np.intp], int]] = []
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        together = rows[-1] - rows[0] + 1 == len(rows)
        groups.append((slice(rows[0], rows[-1] + 1) if together else rows, int(count)))
    return groups


def _squares(values: Floats) -> Floats:
    """Sum of squares of each row: as products of a row with a column, which is what BLAS is fastest at."""
    return np.matmul(values[:, None, :], values[:, :, None]).reshape(-1)
