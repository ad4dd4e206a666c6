"""From samples of many layers to their signals, all layers at once, on the host. No torch.

The rooms for what lies between are made once: at the sizes at hand a fresh array costs more than what is
computed in it.
"""

from __future__ import annotations

from collections.abc import Sequence

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
_BINS = HIST_BINS + 1


class Reduction:
    """Reduces samples of fixed shapes.

    Args:
        rows: of each layer the shape of its plan (columns of the halves, elements of the rest, pairs, units)
        and the
            bounds beyond which its output is flat, if there are any.
        width: elements of a row of samples; what a layer does not fill is zero.
        dtype: number format of the samples. Sums are taken in it, pairwise.
    """

    def __init__(
        self,
        rows: Sequence[tuple[tuple[int, int, int, int], tuple[float, float] | None]],
        width: int,
        dtype: np.dtype[np.floating],
    ) -> None:
        half, rest, pairs, units = np.array([shape for shape, _ in rows], dtype=np.float64).T
        self._valid, self._pairs, self._units = 2 * half + rest, pairs, units
        self._padding = width - self._valid
        column = np.arange(width)
        self._mask = column % (width // 2) < half[:, None]
        self._mask |= column < (half + rest)[:, None]
        self._full = bool(self._mask.all())
        self._room = np.empty((len(rows), width), dtype)
        self._truth = np.empty((len(rows), width), np.bool_)
        self._index = np.empty((len(rows), width), np.intp)
        self._offsets = _BINS * np.arange(len(rows))[:, None]
        self._bounded = [i for i, (_, bounds) in enumerate(rows) if bounds is not None]
        self._bounds = np.array([bounds for _, bounds in rows if bounds is not None]).reshape(-1, 2, 1)

    def __call__(self, values: Floats, units: Floats) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Reduce samples of shape [layers, width] and sums of abs(x) of shape [layers, units].

        Returns the signals REDUCED, shape [signals, layers], NaN where a layer has no such signal, and the
        histograms, shape [layers, bins].
        """
        with np.errstate(all="ignore"):
            found = np.empty((len(REDUCED), len(values)))
            mean, std, rms, near_zero, tiny, variation, dead, dormant, saturated = found
            self._moments(values, mean, std, rms)
            variation[:] = np.sqrt(self._apart(values) / (2 * self._pairs)) / rms
            size = np.abs(values, out=self._room)
            few = np.less_equal(size, (TINY * rms[:, None]).astype(size.dtype), out=self._truth)
            tiny[:] = (np.count_nonzero(few, axis=1) - self._padding) / self._valid
            tiny[~np.isfinite(rms)] = np.nan
            hist = self._histogram(size)
            near_zero[:] = hist[:, :2].sum(1) / self._valid
            self._judge_units(units, dead, dormant)
            saturated[:] = self._saturated(values)
        return found, hist.astype(np.int32)

    def _moments(self, values: Floats, mean: Floats, std: Floats, rms: Floats) -> None:
        mean[:] = values.sum(1) / self._valid
        centred = np.subtract(values, mean[:, None].astype(values.dtype), out=self._room)
        if not self._full:
            centred *= self._mask
        std[:] = np.sqrt(np.einsum("ij,ij->i", centred, centred) / self._valid)
        rms[:] = np.sqrt(np.einsum("ij,ij->i", values, values) / self._valid)

    def _apart(self, values: Floats) -> Floats:
        """Sum of squared differences between the halves: what the units make of another sample."""
        half = values.shape[1] // 2
        apart = np.subtract(values[:, :half], values[:, half:], out=self._room[:, :half])
        if not self._full:
            apart *= self._mask[:, half:]
        return np.einsum("ij,ij->i", apart, apart)

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

    def _judge_units(self, units: Floats, dead: Floats, dormant: Floats) -> None:
        padding = units.shape[1] - self._units
        level = DORMANT * units.sum(1) / self._units
        dead[:] = (np.count_nonzero(units == 0, axis=1) - padding) / self._units
        dormant[:] = (np.count_nonzero(units <= level[:, None], axis=1) - padding) / self._units
        dead[~np.isfinite(level)] = dormant[~np.isfinite(level)] = np.nan

    def _saturated(self, values: Floats) -> Floats:
        """Share of elements at or beyond the bounds of their row; NaN where there are none."""
        shares = np.full(len(values), np.nan)
        if self._bounded:
            some, low, high = values[self._bounded], self._bounds[:, 0], self._bounds[:, 1]
            flat = ((some <= low) | (some >= high)) & self._mask[self._bounded]
            shares[self._bounded] = np.count_nonzero(flat, axis=1) / self._valid[self._bounded]
        return shares
