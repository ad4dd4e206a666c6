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


_LIGHT = 7.0
"""Fourth moment over the square of the second, up to which SAMPLE elements give the rms within 5 % at 95 %.

The relative standard error is `sqrt((7 - 1) / 4096) / 2`, 1.9 %. A normal distribution has 3, after a ReLU 6.
"""

Seen = tuple[float, float] | None
"""The lowest and the highest number."""


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
        self.layout: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
        self.plan: Plan | None = None
        self.dense = True
        """Whether outputs of this layout can be sampled as they are."""
        self.places = self.sample = self.units = self.low = self.high = torch.empty(0)
        self.extremes: NDArray[np.floating] | None = None
        """The lowest and the highest number, where the host can see them without waiting."""
        self.tame = False
        """Whether the last sample had tails so light that moments need no more than the next one."""


class Samples:
    """Rows of samples on one device, in one number format and of one width."""

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        self.width = width
        self._device, self._dtype = device, dtype
        self._rows: list[_Row] = []
        self._sample, self._units, self._extremes = (self._zeros(0, size) for size in (width, 0, 2))
        self._called: dict[int, None] = {}
        self._bad: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        """Exact sums of squares of the outputs that are not taken whole."""
        self._reduction: Reduction | None = None

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def add_row(self, bounds: tuple[float, float] | None) -> int:
        """Make room for one more layer; `bounds` are those beyond which its output is flat."""
        self._rows.append(_Row(bounds))
        if len(self._rows) > len(self._sample):
            self._make_room(2 * len(self._rows), self._units.shape[1])
        self._cut(len(self._rows) - 1)
        return len(self._rows) - 1

    def _make_room(self, rows: int, units: int) -> None:
        """Enlarge the buffers; what was put in before this step's `signals` stays."""
        sample, sizes, extremes = (self._zeros(rows, size) for size in (self.width, units, 2))
        count = len(self._sample)
        sample[:count], extremes[:count] = self._sample, self._extremes
        sizes[:count, : self._units.shape[1]] = self._units
        self._sample, self._units, self._extremes = sample, sizes, extremes
        for place in range(len(self._rows)):
            self._cut(place)

    def _cut(self, place: int) -> None:
        """Cut a row's buffers as its plan needs them."""
        row, extremes = self._rows[place], self._extremes[place]
        row.low, row.high = extremes.unbind()
        row.extremes = extremes.numpy() if self._device.type == "cpu" else None
        if row.plan is not None:
            row.sample = self._sample[place, : len(row.plan.places)]
            row.units = self._units[place, : row.plan.judged]
        self._reduction = None

    def _lay_out(self, place: int, output: Tensor, unit_dim: int) -> Plan:
        """Plan for outputs of another layout than the last one."""
        row, how = self._rows[place], plan(output.shape, output.stride(), unit_dim, self.width)
        row.layout, row.dense = (output.shape, output.stride(), unit_dim), how is not None
        how = how or plan(output.shape, output.contiguous().stride(), unit_dim, self.width)
        assert how is not None
        if how is not row.plan:
            if how.judged > self._units.shape[1]:
                self._make_room(len(self._sample), how.judged)
            row.plan, row.places = how, torch.from_numpy(how.places).to(self._device)
            self._sample[place], self._units[place, how.judged :] = 0, 0
            self._cut(place)
        return how

    def put(self, place: int, output: Tensor, unit_dim: int, relu_of: Seen = None) -> None:
        """Take one output in: its extremes and units always, its sample anew at each call.

        A layer that is called several times in a step thus shows the extremes of all calls and the moments
        of the last. `relu_of` are the extremes of the input, if all that was done to it is a ReLU.
        """
        unit_dim %= max(output.dim(), 1)
        output = whole(output)
        row, first = self._rows[place], place not in self._called
        how = row.plan
        if how is None or row.layout != (output.shape, output.stride(), unit_dim):
            how = self._lay_out(place, output, unit_dim)
        if not row.dense:
            output = output.contiguous()
        if relu_of is not None and row.extremes is not None:
            low, high = (0.0, 0.0) if first else row.extremes
            row.extremes[:] = min(low, 0.0), max(high, relu_of[1], 0.0)
        else:
            self._put_extremes(place, row, output, first)
        self._put_sample(row, output, how)
        self._squares.pop(place, None)
        if how.numel > self.width and not row.tame:
            self._squares[place] = self._sum_of_squares(output.as_strided((how.numel,), (1,)))
        self._put_units(row.units, output, how, first)
        self._called[place] = None

    def _put_sample(self, row: _Row, output: Tensor, how: Plan) -> None:
        if how.grid is not None:
            row.sample.view(how.grid.size).copy_(how.grid.of(output))
            return
        flat = output.as_strided((how.numel,), (1,))
        if output.dtype == self._dtype:
            torch.index_select(flat, 0, row.places, out=row.sample)
        else:
            row.sample.copy_(flat.index_select(0, row.places))

    def extremes(self, place: int) -> Seen:
        """The lowest and highest number of this step's calls, if they are finite and the host sees them."""
        seen = self._rows[place].extremes
        if seen is None or not math.isfinite(seen[0]) or not math.isfinite(seen[1]):
            return None
        return float(seen[0]), float(seen[1])

    def holds(self, place: int) -> bool:
        """Whether the layer was called in this step."""
        return place in self._called

    def move(self, place: int, other: Samples, there: int) -> None:
        """Hand the extremes of this step's calls over to a row of another buffer."""
        if place in self._called:
            del self._called[place]
            self._squares.pop(place, None)
            other._called[there] = None
            other._extremes[there] = self._extremes[place]
        if place in self._bad:
            other._bad[there] = self._bad.pop(place)

    def _put_extremes(self, place: int, row: _Row, output: Tensor, first: bool) -> None:
        if first and output.dtype == self._dtype:
            torch.aminmax(output, out=(row.low, row.high))
        else:
            low, high = torch.aminmax(output)
            row.low.copy_(low if first else torch.minimum(low, row.low))
            row.high.copy_(high if first else torch.maximum(high, row.high))
        # Where the host cannot look without waiting, the device counts without being asked.
        if row.extremes is None or not all(map(math.isfinite, row.extremes.tolist())):
            bad = output.numel() - output.isfinite().sum()
            self._bad[place] = self._bad[place] + bad if place in self._bad else bad

    def _sum_of_squares(self, flat: Tensor) -> Tensor:
        if flat.dtype == self._dtype:
            return torch.dot(flat, flat)
        return torch.linalg.vector_norm(flat, dtype=self._dtype).square()

    def _put_units(self, target: Tensor, output: Tensor, how: Plan, first: bool) -> None:
        """Put or add the sum of abs(x) of each unit in."""
        seen = how.units.of(output)
        if not how.others:
            sizes = seen.abs()
        elif first:
            torch.sum(seen.abs(), how.others, dtype=self._dtype, out=target)
            return
        else:
            sizes = seen.abs().sum(how.others, dtype=self._dtype)
        target.copy_(sizes) if first else target.add_(sizes)

    def parts(self) -> list[Tensor]:
        """Flat tensors that `signals` needs on the host; none if no layer was called in this step."""
        if not self._called:
            return []
        count = len(self._rows)
        parts = [rows[:count].view(-1) for rows in (self._sample, self._units, self._extremes)]
        rest = [*self._bad.values(), *self._squares.values()]
        return [*parts, torch.stack(rest)] if rest else parts

    def forget(self) -> None:
        """Forget what was put in since the last `signals`."""
        self._called, self._bad, self._squares = {}, {}, {}

    def signals(self, sample: Floats, units: Floats, extremes: Floats, rest: Floats | None = None) -> Outputs:
        """Reduce the host copies of `parts`, and forget what was put in."""
        called, count = list(self._called), len(self._rows)
        if self._reduction is None:
            self._reduction = Reduction([_shape(row) for row in self._rows], self.width, sample.dtype)
        found, hist = self._reduction(sample.reshape(count, -1), units.reshape(count, -1))
        signals = np.zeros((len(ACTIVATION_SIGNALS), count))
        signals[:-2] = found
        signals[-2] = np.abs(extremes.reshape(count, 2)).max(1)
        if rest is not None:
            bad, squares = np.split(rest.astype(np.float64), [len(self._bad)])
            signals[-1, list(self._bad)] = bad
            self._correct(signals, squares)
        self._tame(sample.reshape(count, -1), found[2])
        self.forget()
        return Outputs(called, signals[:, called], hist[called])

    def _tame(self, sample: Floats, rms: NDArray[np.float64]) -> None:
        """Find the rows whose exact sum of squares can be spared at the next step.

        Only a grid falls evenly on loud and quiet units alike.
        """
        large = [i for i in self._called if (how := self._rows[i].plan) and how.grid is not None]
        if not large:
            return
        # A quarter is enough: stretches of neighbours, since a stride could fall in step with loud channels.
        some = sample.reshape(len(sample), 64, -1)[large, ::4].reshape(len(large), -1)
        with np.errstate(all="ignore"):
            squares = np.square(some / rms[large, None].astype(some.dtype))
            tails = np.einsum("ij,ij->i", squares, squares) / some.shape[1]
        for row, tail in zip(large, tails.tolist(), strict=True):
            self._rows[row].tame = tail <= _LIGHT

    def _correct(self, signals: NDArray[np.float64], squares: Floats) -> None:
        """Bring std and rms of sampled outputs in line with their exact sums of squares.

        A ratio estimate: of outputs that are mostly zero, or loud in few places, a sample alone knows too
        little.
        """
        rows = list(self._squares)
        numel = np.array(
            [how.numel for row in rows if (how := self._rows[row].plan) is not None], dtype=np.float64
        )
        std, rms = (ACTIVATION_SIGNALS.index(name) for name in ("act.std", "act.rms"))
        factor = _by_how_much(squares, numel, signals[rms, rows])
        signals[std, rows] *= factor
        signals[rms, rows] *= factor


def _by_how_much(squares: Floats, numel: Floats, rms: Floats) -> Floats:
    """The factor that brings the rms of a sample in line with the sum of squares of all elements."""
    with np.errstate(all="ignore"):
        factor = np.sqrt(squares / numel) / rms
    return np.where(np.isfinite(factor) & (factor > 0), factor, 1.0)


def _shape(row: _Row) -> RowShape:
    how = row.plan
    if how is None:
        return RowShape(0, 0, 0, row.bounds)
    return RowShape(len(how.places), how.pairs, how.judged, row.bounds)
