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

from stepguard.collect.reduction import REDUCED, Floats, Reduction, RowShape
from stepguard.collect.sampling import SAMPLE, Plan, plan, whole

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
    """One layer's place in the buffers, cut to the layout of its last output."""

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self.bounds = bounds
        self.plan: Plan | None = None
        self.places = self.sample = self.units = torch.empty(0)


class Samples:
    """Rows of samples on one device, in one number format and of one width."""

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        self.width = width
        self._device, self._dtype = device, dtype
        self._rows: list[_Row] = []
        self._sample, self._units = self._zeros(0, width), self._zeros(0, 0)
        self._extremes: dict[int, tuple[Tensor, Tensor]] = {}
        self._bad: dict[int, Tensor] = {}
        self._reduction: Reduction | None = None

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def add_row(self, bounds: tuple[float, float] | None) -> int:
        """Make room for one more layer; `bounds` are those beyond which its output is flat."""
        self._rows.append(_Row(bounds))
        if len(self._rows) > len(self._sample):
            self._make_room(2 * len(self._rows), self._units.shape[1])
        return len(self._rows) - 1

    def _make_room(self, rows: int, units: int) -> None:
        """Enlarge the buffers; what was put in before this step's `signals` stays."""
        sample, sizes = self._zeros(rows, self.width), self._zeros(rows, units)
        sample[: len(self._sample)] = self._sample
        sizes[: len(self._units), : self._units.shape[1]] = self._units
        self._sample, self._units = sample, sizes
        for place, row in enumerate(self._rows):
            if row.plan is not None:
                self._cut(place, row, row.plan)

    def _cut(self, place: int, row: _Row, how: Plan) -> None:
        """Fit a row to a layout. Behind the places of its sample come ones that do not count."""
        places = np.zeros(self.width, dtype=np.int64)
        places[: len(how.places)] = how.places
        row.plan, row.places = how, torch.from_numpy(places).to(self._device)
        row.sample, row.units = self._sample[place], self._units[place, : how.judged]
        self._reduction = None

    def put(self, place: int, output: Tensor, unit_dim: int) -> None:
        """Take one output in: its extremes and units always, its sample anew at each call.

        A layer that is called several times in a step thus shows the extremes of all calls and the moments
        of the last.
        """
        unit_dim %= max(output.dim(), 1)
        output = whole(output)
        how = plan(output.shape, output.stride(), unit_dim, self.width)
        if how is None:
            output = output.contiguous()
            how = plan(output.shape, output.stride(), unit_dim, self.width)
            assert how is not None
        row, first = self._rows[place], place not in self._extremes
        if row.plan is not how:
            if how.judged > self._units.shape[1]:
                self._make_room(len(self._sample), how.judged)
            self._cut(place, row, how)
        self._put_extremes(place, output, first)
        flat = output.as_strided((how.numel,), (1,), output.storage_offset())
        if output.dtype == self._dtype:
            torch.index_select(flat, 0, row.places, out=row.sample)
        else:
            row.sample.copy_(flat.index_select(0, row.places))
        self._put_units(row.units, how.units.of(output).abs(), how.others, first)

    def holds(self, place: int) -> bool:
        """Whether the layer was called in this step."""
        return place in self._extremes

    def move(self, place: int, other: Samples, there: int) -> None:
        """Hand the extremes of this step's calls over to a row of another buffer."""
        if place in self._extremes:
            other._extremes[there] = self._extremes.pop(place)
        if place in self._bad:
            other._bad[there] = self._bad.pop(place)

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
            self._reduction = Reduction([_shape(row) for row in self._rows], self.width, sample.dtype)
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


def _shape(row: _Row) -> RowShape:
    how = row.plan
    if how is None:
        return RowShape(0, 0, 0, row.bounds)
    return RowShape(len(how.places), how.pairs, how.judged, row.bounds)


def known_finite(low: Tensor, high: Tensor) -> bool:
    """Whether the host can tell without waiting that both are finite; False on any other device.

    On the CPU the numbers are host memory already, and reading them costs nothing.
    """
    if low.device.type != "cpu":
        return False
    if low.dtype == torch.bfloat16:
        low, high = low.float(), high.float()
    return math.isfinite(low.numpy()) and math.isfinite(high.numpy())
