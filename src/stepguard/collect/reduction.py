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


class RowShape(NamedTuple):
    """What a row of samples holds."""

    valid: int
    """Elements; what comes behind them does not count."""
    pairs: int
    """So many elements at the beginning, each with its partner so many places behind it."""
    units: int
    bounds: tuple[float, float] | None
    """The output is flat at and beyond these; None if it is nowhere."""


class Reduction:
    """Reduces samples of fixed shapes; `width` is the length of a row. Sums are taken pairwise in `dtype`."""

    def __init__(self, rows: Sequence[RowShape], width: int, dtype: np.dtype[np.floating]) -> None:
        valid, pairs, units = np.array([row[:3] for row in rows]).T
        column = np.arange(width)
        self._valid, self._pairs, self._units = (x.astype(np.float64) for x in (valid, pairs, units))
        self._padding = width - self._valid
        self._mask = column < valid[:, None]
        self._full = bool(self._mask.all())
        self._paired = int(pairs.max(initial=0))
        same = bool((pairs == self._paired).all())
        # Where all rows have as many pairs their partners stand in a block; otherwise they are picked out.
        first = column[: self._paired]
        self._partners = None if same else np.minimum(first + pairs[:, None], width - 1)
        self._unpaired = None if same else first >= pairs[:, None]
        self._room, self._index = np.empty((len(rows), width), dtype), np.empty((len(rows), width), np.intp)
        self._truth = np.empty((len(rows), width), np.bool_)
        self._offsets = _BINS * np.arange(len(rows))[:, None]
        self._bounded = [i for i, row in enumerate(rows) if row.bounds is not None]
        self._bounds = np.array([rows[i].bounds for i in self._bounded]).reshape(-1, 2, 1)

    def __call__(self, values: Floats, units: Floats) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Reduce samples of shape [layers, width] and sums of abs(x) of shape [layers, units].

        Returns the signals REDUCED, shape [signals, layers], NaN where a layer has no such signal, and the
        histograms, shape [layers, bins]. What does not count in `values` is overwritten with zeros.
        """
        if not self._full:
            np.copyto(values, 0, where=~self._mask)
        with np.errstate(all="ignore"):
            found = np.empty((len(REDUCED), len(values)))
            mean, std, rms, near_zero, tiny, variation, dead, dormant, saturated = found
            mean[:], std[:], rms[:] = _moments(values, self._mask, self._valid, self._room)
            self._look_again(values, mean, std, rms)
            variation[:] = np.sqrt(self._apart(values) / (2 * self._pairs)) / rms
            size = np.abs(values, out=self._room)
            few = np.less_equal(size, (TINY * rms[:, None]).astype(size.dtype), out=self._truth)
            tiny[:] = (np.count_nonzero(few, axis=1) - self._padding) / self._valid
            tiny[~np.isfinite(rms)] = np.nan
            hist = self._histogram(size)
            near_zero[:] = hist[:, :2].sum(1) / self._valid
            dead[:], dormant[:] = self._judge(units)
            saturated[:] = self._saturated(values)
        return found, hist.astype(np.int32)

    def _look_again(self, values: Floats, mean: Floats, std: Floats, rms: Floats) -> None:
        """Take the moments in double precision where squares of finite numbers left the single one."""
        rows = np.flatnonzero(~(np.isfinite(rms) & (std > 0)) & np.isfinite(mean))
        if len(rows) and values.dtype != np.float64:
            wide = values[rows].astype(np.float64)
            mean[rows], std[rows], rms[rows] = _moments(
                wide, self._mask[rows], self._valid[rows], wide.copy()
            )

    def _apart(self, values: Floats) -> Floats:
        """Sum of squared differences of the pairs: what the units make of another sample."""
        count = self._paired
        first, apart = values[:, :count], self._room[:, :count]
        if self._partners is None:
            np.subtract(first, values[:, count : 2 * count], out=apart)
        else:
            np.subtract(first, np.take_along_axis(values, self._partners, axis=1), out=apart)
            np.copyto(apart, 0, where=self._unpaired)
        return np.einsum("ij,ij->i", apart, apart, dtype=np.float64)

    def _histogram(self, size: Floats) -> NDArray[np.intp]:
        """Counts of abs(x) in equal bins, those above and NaN in the last; overwrites its argument."""
        size *= HIST_BINS / HIST_TOP
        inside = np.less(size, HIST_BINS, out=self._truth)
        np.copyto(size, HIST_BINS, where=np.logical_not(inside, out=inside))
        np.copyto(self._index, size, casting="unsafe")
        self._index += self._offsets
        hist = np.bincount(self._index.ravel(), minlength=_BINS * len(size)).reshape(-1, _BINS)
        hist[:, 0] -= self._padding.astype(np.intp)
        return hist

    def _judge(self, units: Floats) -> NDArray[np.float64]:
        """Shares of dead and of dormant units, shape [2, layers]."""
        padding = units.shape[1] - self._units
        level = DORMANT * units.sum(1) / self._units
        counts = np.array(
            [np.count_nonzero(few, axis=1) for few in (units == 0, units <= level[:, None])], dtype=np.float64
        )
        return np.where(np.isfinite(level), (counts - padding) / self._units, np.nan)

    def _saturated(self, values: Floats) -> Floats:
        """Share of elements at or beyond the bounds of their row; NaN where there are none."""
        shares = np.full(len(values), np.nan)
        if self._bounded:
            some, low, high = values[self._bounded], self._bounds[:, 0], self._bounds[:, 1]
            flat = ((some <= low) | (some >= high)) & self._mask[self._bounded]
            shares[self._bounded] = np.count_nonzero(flat, axis=1) / self._valid[self._bounded]
        return shares


def _moments(values: Floats, mask: Truths, valid: Floats, room: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, std and rms of rows with zeros behind what counts."""
    mean = values.sum(1) / valid
    centred = np.subtract(values, mean[:, None].astype(values.dtype), out=room)
    if values.shape[1] > valid.min():
        centred *= mask
    std = np.sqrt(np.einsum("ij,ij->i", centred, centred) / valid)
    return mean, std, np.hypot(mean, std)
