"""Samples of many layers' outputs in one buffer, so that all layers are reduced together.

Flow: a hook hands in one output; at the step boundary `reduce` turns all rows into one small tensor on the
same device, and `signals` turns its host copy into numbers. Nothing here waits for the device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.sampling import MAX_UNITS, SAMPLE, Plan, plan, whole
from stepguard.signals import HIST_BINS, HIST_TOP

WIDTHS = (64, 256, 1024, SAMPLE)
"""Widths of buffers: a layer takes the narrowest that holds its whole output, or the widest."""
TINY = 0.01
DORMANT = 0.025
"""ReDo (arXiv 2302.12902): a unit whose mean abs(x) is at most this share of the layer's is dormant."""

_REDUCED = 9
"""Numbers a row before the histogram: see `reduce`."""


class Samples:
    """Rows of samples on one device, in one number format and of one width."""

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        self.width = width
        self._device, self._dtype = device, dtype
        self._capacity = self._count = 0
        self._sample, self._mask = (self._zeros(0, 2, width // 2) for _ in range(2))
        self._units = self._zeros(0, min(width, MAX_UNITS))
        self._scratch = self._zeros(2, 0, width)
        self._bounds: list[tuple[float, float]] = []
        self._shape: list[tuple[int, int, int, int]] = []
        """For each row: elements in each half, elements in the rest, pairs, units."""
        self._extremes: dict[int, tuple[Tensor, Tensor]] = {}
        self._bad: dict[int, Tensor] = {}
        self._touched: list[int] = []

    def add_row(self, bounds: tuple[float, float] | None) -> int:
        """Make room for one more layer; `bounds` are those beyond which its output is flat."""
        if self._count == self._capacity:
            self._grow(max(8, 2 * self._capacity))
        self._bounds.append(bounds or (math.nan, math.nan))
        self._shape.append((0, 0, 0, 0))
        self._count += 1
        return self._count - 1

    def _grow(self, capacity: int) -> None:
        def enlarged(old: Tensor) -> Tensor:
            new = self._zeros(capacity, *old.shape[1:])
            new[: len(old)] = old
            return new

        self._sample, self._mask, self._units = map(enlarged, (self._sample, self._mask, self._units))
        self._scratch = torch.empty((2, capacity, self.width), device=self._device, dtype=self._dtype)
        self._capacity = capacity

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def put(self, row: int, output: Tensor, unit_dim: int) -> None:
        """Take one output in: its extremes and units always, its sample anew at each call.

        A layer that is called several times in a step thus shows the extremes of all calls and the moments
        of the last.
        """
        output = whole(output)
        how = plan(tuple(output.shape), output.stride(), unit_dim % output.dim(), self.width)
        if how is None:
            output = output.contiguous()
            how = plan(tuple(output.shape), output.stride(), unit_dim % output.dim(), self.width)
            assert how is not None
        first = row not in self._extremes
        self._put_extremes(row, output, first)
        self._put_sample(row, output, how)
        self._put_units(row, output, how, first)

    def _put_extremes(self, row: int, output: Tensor, first: bool) -> None:
        low, high = torch.aminmax(output)
        if not known_finite(low, high):
            bad = output.numel() - output.isfinite().sum()
            self._bad[row] = bad if first or row not in self._bad else self._bad[row] + bad
        if not first:
            before = self._extremes[row]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._extremes[row] = (low, high)

    def _put_sample(self, row: int, output: Tensor, how: Plan) -> None:
        half, rest = how.halves.size[1], 0 if how.rest is None else how.rest.size[0]
        units = how.units.size[how.unit_dim]
        if self._shape[row] != (half, rest, how.pairs, units):
            self._reshape_row(row, half, rest, how.pairs, units)
        self._sample[row, :, :half].copy_(how.halves.of(output))
        if how.rest is not None:
            self._sample[row, 0, half : half + rest].copy_(how.rest.of(output))

    def _reshape_row(self, row: int, half: int, rest: int, pairs: int, units: int) -> None:
        self._shape[row] = (half, rest, pairs, units)
        self._sample[row].zero_()
        self._units[row].zero_()
        self._mask[row].zero_()
        self._mask[row, :, :half] = 1
        self._mask[row, 0, half : half + rest] = 1

    def _put_units(self, row: int, output: Tensor, how: Plan, first: bool) -> None:
        view = how.units.of(output)
        others = tuple(dim for dim in range(view.dim()) if dim != how.unit_dim)
        size = torch.abs(view).sum(others, dtype=self._dtype) if others else torch.abs(view)
        target = self._units[row, : size.shape[0]]
        target.copy_(size) if first else target.add_(size)

    def reduce(self) -> Tensor | None:
        """Reduce all rows to one flat tensor on the device; None if no layer was called in this step."""
        if not self._extremes:
            return None
        self._touched = list(self._extremes)
        count = self._count
        sample, mask = self._sample[:count].flatten(1), self._mask[:count].flatten(1)
        centred, size = self._scratch[0, :count], self._scratch[1, :count]
        total = sample.sum(1)
        valid = mask.sum(1)
        torch.sub(sample, (total / valid)[:, None], out=centred).mul_(mask)
        spread = torch.linalg.vector_norm(centred, dim=1)
        norm = torch.linalg.vector_norm(sample, dim=1)
        torch.abs(sample, out=size)
        rms = norm / valid.sqrt()
        tiny = (size <= TINY * rms[:, None]).sum(1)
        half = self.width // 2
        apart = torch.sub(sample[:, :half], sample[:, half:], out=centred[:, :half])
        apart = torch.linalg.vector_norm(apart.mul_(mask[:, half:]), dim=1)
        units = self._units[:count]
        unit_total = units.sum(1)
        dead = (units == 0).sum(1)
        dormant = (units <= self._dormant_below(unit_total)[:, None]).sum(1)
        rows = [total, spread, norm, tiny, apart, unit_total, dead, dormant, self._saturated(sample, mask)]
        columns = [row.to(total.dtype) for row in rows]
        return torch.cat((*columns, self._histogram(size), self._scalars(total.dtype)))

    def forget(self) -> None:
        """Forget what was put in since the last `reduce`."""
        self._extremes, self._bad = {}, {}

    def _dormant_below(self, unit_total: Tensor) -> Tensor:
        counts = torch.tensor([max(shape[3], 1) for shape in self._shape], dtype=unit_total.dtype)
        return DORMANT * unit_total / counts.to(unit_total.device, non_blocking=True)

    def _saturated(self, sample: Tensor, mask: Tensor) -> Tensor:
        bounds = torch.tensor(self._bounds, device=self._device, dtype=self._dtype)
        if bool(np.isnan([low for low, _ in self._bounds]).all()):
            return bounds[:, 0]
        flat = (sample >= bounds[:, 1:]) | (sample <= bounds[:, :1])
        return (flat * mask).sum(1)

    def _histogram(self, size: Tensor) -> Tensor:
        bins = HIST_BINS + 1
        index = torch.fmin(size * (HIST_BINS / HIST_TOP), size.new_tensor(HIST_BINS)).to(torch.int64)
        index += bins * torch.arange(len(size), device=size.device)[:, None]
        return torch.bincount(index.flatten(), minlength=bins * len(size)).to(size.dtype)

    def _scalars(self, dtype: torch.dtype) -> Tensor:
        zero = self._zeros()
        lows = [self._extremes[row][0] for row in self._touched]
        highs = [self._extremes[row][1] for row in self._touched]
        bad = [self._bad.get(row, zero) for row in self._touched]
        self.forget()
        return torch.stack([scalar.to(dtype) for scalar in (*lows, *highs, *bad)])

    def signals(
        self, host: NDArray[np.floating]
    ) -> tuple[list[int], dict[str, NDArray[np.float64]], NDArray[np.int32]]:
        """Turn the host copy of what `reduce` gave into rows called, their signals and histograms."""
        count, bins, rows = self._count, HIST_BINS + 1, self._touched
        numbers = host.astype(np.float64)
        total, spread, norm, tiny, apart, unit_total, dead, dormant, saturated = numbers[
            : _REDUCED * count
        ].reshape(_REDUCED, count)[:, rows]
        hist = numbers[_REDUCED * count : (_REDUCED + bins) * count].reshape(count, bins)[rows]
        low, high, bad = numbers[(_REDUCED + bins) * count :].reshape(3, len(rows))
        half, rest, pairs, units = np.array([self._shape[row] for row in rows], dtype=np.float64).T
        valid, padding = 2 * half + rest, self.width - 2 * half - rest
        unit_padding = self._units.shape[1] - units
        hist[:, 0] -= padding
        with np.errstate(all="ignore"):
            rms = norm / np.sqrt(valid)
            found = {
                "act.mean": total / valid,
                "act.std": spread / np.sqrt(valid),
                "act.rms": rms,
                "act.absmax": np.maximum(np.abs(low), np.abs(high)),
                "act.near_zero": hist[:, :2].sum(1) / valid,
                "act.tiny": np.where(np.isfinite(rms), (tiny - padding) / valid, np.nan),
                "act.dead": np.where(np.isfinite(unit_total), (dead - unit_padding) / units, np.nan),
                "act.dormant": np.where(np.isfinite(unit_total), (dormant - unit_padding) / units, np.nan),
                "act.variation": apart / np.sqrt(2 * pairs) / rms,
                "act.saturated": saturated / valid,
                "act.nonfinite": bad,
            }
        return rows, found, hist.astype(np.int32)


def known_finite(low: Tensor, high: Tensor) -> bool:
    """Whether the host can tell without waiting that both are finite; False on any other device.

    On the CPU the numbers are host memory already, and reading them costs nothing.
    """
    if low.device.type != "cpu":
        return False
    return math.isfinite(float(low.float().numpy())) and math.isfinite(float(high.float().numpy()))
