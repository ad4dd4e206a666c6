"""Samples of many layers' outputs in one buffer, so that all layers are reduced together.

Flow: a hook hands in one output, of which the device keeps a sample, the sizes of its units and its extremes;
at the step boundary `parts` names the tensors to bring over, and `signals` reduces their host copies.
Nothing here waits for the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.reduction import REDUCED, Floats, Reduction
from stepguard.collect.sampling import MAX_UNITS, SAMPLE, Plan, plan, whole

WIDTHS = (64, 256, 1024, SAMPLE)
"""Widths of buffers: a layer takes the narrowest that holds its whole output, or the widest."""
ACTIVATION_SIGNALS = (*REDUCED, "act.absmax", "act.nonfinite")
"""The signals of outputs, in the order of the rows that `Samples.signals` gives."""


class Outputs(NamedTuple):
    """What was measured of the outputs of some layers."""

    rows: list[int]
    signals: NDArray[np.float64]
    """Shape [ACTIVATION_SIGNALS, rows]; NaN also where a layer cannot have the signal."""
    hist: NDArray[np.int32]
    """Shape [rows, HIST_BINS + 1]."""


class _Row:
    """One layer's place in the buffers, cut to the shape of its last output."""

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self.bounds = bounds
        self.plan: Plan | None = None
        self.halves = self.rest = self.units = torch.empty(0)

    def cut(self, how: Plan, sample: Tensor, units: Tensor) -> None:
        """Cut the row's buffers, of shape [2, width / 2] and [units], as the plan needs them."""
        half, rest, _, count = how.shape
        self.plan = how
        self.halves, self.rest = sample[:, :half], sample[0, half : half + rest]
        self.units = units[:count]


class Samples:
    """Rows of samples on one device, in one number format and of one width."""

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        self.width = width
        self._device, self._dtype = device, dtype
        self._rows: list[_Row] = []
        self._sample, self._units = self._zeros(0, 2, width // 2), self._zeros(0, min(width, MAX_UNITS))
        self._extremes: dict[int, tuple[Tensor, Tensor]] = {}
        self._bad: dict[int, Tensor] = {}
        self._reduction: Reduction | None = None

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def add_row(self, bounds: tuple[float, float] | None) -> int:
        """Make room for one more layer; `bounds` are those beyond which its output is flat."""
        count = len(self._rows)
        if count == len(self._sample):
            self._grow(max(8, 2 * count))
        self._rows.append(_Row(bounds))
        return count

    def _grow(self, capacity: int) -> None:
        count = len(self._rows)
        sample, units = (
            self._zeros(capacity, *self._sample.shape[1:]),
            self._zeros(capacity, self._units.shape[1]),
        )
        sample[:count], units[:count] = self._sample, self._units
        self._sample, self._units = sample, units
        for place, row in enumerate(self._rows):
            if row.plan is not None:
                row.cut(row.plan, sample[place], units[place])

    def put(self, place: int, output: Tensor, unit_dim: int) -> None:
        """Take one output in: its extremes and units always, its sample anew at each call.

        A layer that is called several times in a step thus shows the extremes of all calls and the moments
        of the last.
        """
        output = whole(output)
        how = plan(output.shape, output.stride(), unit_dim % output.dim(), self.width)
        if how is None:
            output = output.contiguous()
            how = plan(output.shape, output.stride(), unit_dim % output.dim(), self.width)
            assert how is not None
        row, first = self._rows[place], place not in self._extremes
        if row.plan is not how:
            self._sample[place], self._units[place] = 0, 0
            row.cut(how, self._sample[place], self._units[place])
            self._reduction = None
        self._put_extremes(place, output, first)
        row.halves.copy_(how.halves.of(output))
        if how.rest is not None:
            row.rest.copy_(how.rest.of(output))
        self._put_units(row.units, how.units.of(output).abs(), how.others, first)

    def _put_extremes(self, place: int, output: Tensor, first: bool) -> None:
        low, high = torch.aminmax(output)
        if not known_finite(low, high):
            bad = output.numel() - output.isfinite().sum()
            self._bad[place] = self._bad[place] + bad if place in self._bad else bad
        if not first:
            before = self._extremes[place]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._extremes[place] = (low, high)

    def _put_units(self, target: Tensor, sizes: Tensor, others: tuple[int, ...], first: bool) -> None:
        if first and others and sizes.dtype == self._dtype:
            torch.sum(sizes, others, out=target)
            return
        sizes = sizes.sum(others, dtype=self._dtype) if others else sizes
        target.copy_(sizes) if first else target.add_(sizes)

    def parts(self) -> list[Tensor]:
        """Flat tensors that `signals` needs on the host; none if no layer was called in this step."""
        if not self._extremes:
            return []
        lows, highs = zip(*self._extremes.values(), strict=True)
        scalars = torch.stack([*lows, *highs, *self._bad.values()])
        count = len(self._rows)
        return [self._sample[:count].flatten(), self._units[:count].flatten(), scalars]

    def forget(self) -> None:
        """Forget what was put in since the last `signals`."""
        self._extremes, self._bad = {}, {}

    def signals(self, sample: Floats, units: Floats, scalars: Floats) -> Outputs:
        """Reduce the host copies of `parts`, and forget what was put in."""
        called, count = list(self._extremes), len(self._rows)
        if self._reduction is None:
            plans = [(row.plan.shape if row.plan else (0, 0, 0, 0), row.bounds) for row in self._rows]
            self._reduction = Reduction(plans, self.width, sample.dtype)
        found, hist = self._reduction(sample.reshape(count, -1), units.reshape(count, -1))
        low, high = scalars[: 2 * len(called)].astype(np.float64).reshape(2, -1)
        signals = np.empty((len(ACTIVATION_SIGNALS), len(called)))
        signals[:-2] = found[:, called]
        signals[-2] = np.maximum(np.abs(low), np.abs(high))
        signals[-1] = 0
        if self._bad:
            signals[-1, [called.index(place) for place in self._bad]] = scalars[2 * len(called) :]
        self.forget()
        return Outputs(called, signals, hist[called])


def known_finite(low: Tensor, high: Tensor) -> bool:
    """Whether the host can tell without waiting that both are finite; False on any other device.

    On the CPU the numbers are host memory already, and reading them costs nothing.
    """
    if low.device.type != "cpu":
        return False
    if low.dtype == torch.bfloat16:
        low, high = low.float(), high.float()
    return math.isfinite(low.numpy()) and math.isfinite(high.numpy())
