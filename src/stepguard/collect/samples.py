"""Samples of many layers' outputs in one buffer, so that all layers are reduced together.

Flow: a hook hands in one output, of which the device keeps a sample and the extremes; at the step boundary
`parts` names the tensors to bring over, and `signals` reduces their host copies. Nothing here waits for the
device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.reduction import REDUCED, Floats, Reduction, RowShape
from stepguard.collect.rows import Layout, Row, Rows
from stepguard.collect.sampling import SAMPLE, Plan, plan, whole

WIDTHS = (64, 256, 1024, SAMPLE)
"""Widths of buffers: a layer takes the narrowest that holds its whole output, or the widest."""
ACTIVATION_SIGNALS = (*REDUCED, "act.absmax", "act.nonfinite")
"""The signals of outputs, in the order of the rows that `Samples.signals` gives."""

_LIGHT = 8.0
"""Fourth moment over the square of the second, up to which SAMPLE elements give the rms within 5 % at 95 %.

The relative standard error is `sqrt((8 - 1) / 4096) / 2`, 2.1 %. A normal distribution has 3, after a ReLU 6.
"""


class Outputs(NamedTuple):
    """What was measured of the outputs of some layers."""

    called: list[int]
    """Rows whose layers were called: of the others the numbers mean nothing."""
    signals: NDArray[np.float64]
    """Shape [ACTIVATION_SIGNALS, rows]; NaN also where a layer cannot have the signal."""
    hist: NDArray[np.int32]
    """Shape [rows, HIST_BINS + 1]; overwritten at the next step."""


class _Taken(NamedTuple):
    """What was put in until `parts` was called; of the rows, which may be cut anew before they arrive."""

    called: list[int]
    bad: list[int]
    """Rows whose non-finite numbers were counted."""
    squares: list[int]
    """Rows with exact sums of squares."""
    numel: NDArray[np.float64]
    """Elements of the outputs of these."""
    shapes: list[RowShape]


class Samples:
    """Samples on one device, in one number format and of one width."""

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        self._width, self._dtype = width, dtype
        self._rows = Rows(device, dtype, width)
        self._called: dict[int, None] = {}
        self._relus: dict[int, int] = {}
        """Rows that hold a ReLU of another row, and which: their numbers are made when all are in."""
        self._again: dict[int, Tensor] = {}
        """Of layers that were called several times the sums of each unit over all calls but the last."""
        self._bad: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        """Exact sums of squares of the outputs that are not taken whole."""
        self._shapes: list[RowShape] | None = None
        """Those of the rows, until one is cut anew."""
        self._taken = _Taken([], [], [], np.empty(0), [])
        self._reduction: tuple[list[RowShape], Reduction] | None = None
        """The last one, and the shapes that it was made for."""

    def add_row(self, bounds: tuple[float, float] | None) -> int:
        """Make room for one more layer; `bounds` are those beyond which its output is flat."""
        self._shapes = None
        return self._rows.add(bounds)

    def put(self, place: int, output: Tensor, unit_dim: int | None) -> None:
        """Take one output in: its extremes and units always, its sample anew at each call.

        A layer that is called several times in a step thus shows the extremes of all calls and the moments
        of the last. With `unit_dim` None no unit is judged.
        """
        row, again = self._rows[place], place in self._called
        if again:
            self._call_again(place)
        output = whole(output.detach())
        how = self._planned(place, output, unit_dim)
        self._put_extremes(place, output, again)
        memory = output.as_strided((how.extent,), (1,))
        if output.dtype == self._dtype:
            torch.index_select(memory, 0, row.where, out=row.sample)
        else:
            row.sample.copy_(memory.index_select(0, row.where))
        self._put_squares(place, row, output, how)
        self._called[place] = None

    def put_relu(self, place: int, output: Tensor, of: int) -> bool:
        """Take in the ReLU of the output that row `of` holds, without looking at it; False if that cannot be.

        It can if the host sees that all numbers are finite, and both layers were called once in this step.
        """
        row, source = self._rows[place], self._rows[of]
        if place in self._called or of in self._again or not source.judged or source.host is None:
            return False
        if source.plan is None or source.layout is None or not _finite(source.host.extremes):
            return False
        output = whole(output.detach())
        if (output.shape, output.stride()) != source.layout[:2]:
            return False
        if row.layout != source.layout:
            self._lay_out(place, source.plan, source.layout)
        self._put_squares(place, row, output, source.plan)
        self._called[place], self._relus[place] = None, of
        return True

    def _planned(self, place: int, output: Tensor, unit_dim: int | None) -> Plan:
        row = self._rows[place]
        layout = output.shape, output.stride(), unit_dim
        if row.plan is None or row.layout != layout:
            self._lay_out(place, plan(*layout, self._width), layout)
        assert row.plan is not None
        return row.plan

    def _call_again(self, place: int) -> None:
        """Keep what the sample at hand tells of the calls before, since the next one takes its place."""
        self._finish_relus()
        row = self._rows[place]
        if row.plan is not None and row.judged:
            sums = row.sample.abs().view(row.plan.each, row.plan.units).sum(0)
            self._again[place] = sums + self._again[place] if place in self._again else sums

    def _finish_relus(self) -> None:
        for place, of in self._relus.items():
            row, source = self._rows[place], self._rows[of]
            if row.host is not None and source.host is not None:
                for mine, given in zip(row.host, source.host, strict=True):
                    np.maximum(given, 0, out=mine)
        self._relus = {}

    def _put_extremes(self, place: int, output: Tensor, again: bool) -> None:
        row = self._rows[place]
        if output.dtype == self._dtype and not again:
            torch.aminmax(output, out=(row.low, row.high))
        else:
            low, high = torch.aminmax(output)
            row.low.copy_(torch.minimum(low, row.low) if again else low)
            row.high.copy_(torch.maximum(high, row.high) if again else high)
        # Where the host cannot look without waiting, the device counts without being asked.
        if row.host is None or not _finite(row.host.extremes):
            bad = output.numel() - output.isfinite().sum()
            self._bad[place] = self._bad[place] + bad if place in self._bad else bad

    def _put_squares(self, place: int, row: Row, output: Tensor, how: Plan) -> None:
        """Take the sum of squares over all elements, where the sample alone may tell too little of it."""
        self._squares.pop(place, None)
        if how.numel == how.sample or row.tame:
            return
        if output.dtype == self._dtype and how.extent == how.numel:
            flat = output.as_strided((how.extent,), (1,))
            self._squares[place] = torch.dot(flat, flat)
        else:
            self._squares[place] = torch.linalg.vector_norm(output, dtype=self._dtype).square()

    def holds(self, place: int) -> bool:
        """Whether the layer was called in this step."""
        return place in self._called

    def move(self, place: int, other: Samples, there: int) -> None:
        """Hand the extremes of this step's calls over to a row of another buffer."""
        if place in self._called:
            self._finish_relus()
            del self._called[place]
            self._squares.pop(place, None)
            other._called[there] = None
            other._rows.extremes[there] = self._rows.extremes[place]
        if place in self._bad:
            other._bad[there] = self._bad.pop(place)

    def parts(self) -> list[Tensor]:
        """Tensors that `signals` needs on the host; none if no layer was called in this step.

        What was put in is forgotten, so that the next forward pass may begin before `signals` is called.
        """
        if not self._called:
            return []
        self._finish_relus()
        rows = self._rows
        rows.judge()
        for place, sums in self._again.items():
            rows.units[place, : len(sums)].add_(sums)
        rest = [*self._bad.values(), *self._squares.values()]
        self._take()
        return [rows.sample, rows.units, rows.extremes, *([torch.stack(rest)] if rest else [])]

    def _take(self) -> None:
        if self._shapes is None:
            self._shapes = [_shape(row) for row in self._rows]
        squares = list(self._squares)
        numel = np.array([how.numel for row in squares if (how := self._rows[row].plan)], dtype=np.float64)
        self._taken = _Taken(list(self._called), list(self._bad), squares, numel, self._shapes)
        self.forget()

    def forget(self) -> None:
        """Forget what was put in since the last `parts`."""
        self._called, self._bad, self._squares = {}, {}, {}
        self._again, self._relus = {}, {}

    def signals(self, sample: Floats, units: Floats, extremes: Floats, rest: Floats | None = None) -> Outputs:
        """Reduce the host copies of what `parts` gave last."""
        called, bad, _, _, shapes = self._taken
        count = len(shapes)
        sample = sample.reshape(count, -1)
        if self._reduction is None or self._reduction[0] is not shapes:
            self._reduction = shapes, Reduction(shapes, sample.shape[1], sample.dtype)
        reduction = self._reduction[1]
        found, hist = reduction(sample, units.reshape(count, -1))
        signals = np.zeros((len(ACTIVATION_SIGNALS), count))
        signals[:-2] = found
        signals[-2] = np.abs(extremes.reshape(count, 2)).max(1)
        if rest is not None:
            counts, squares = np.split(rest.astype(np.float64), [len(bad)])
            signals[-1, bad] = counts
            self._correct(signals, squares)
        for row, tail in zip(self._rows, reduction.tails.tolist(), strict=False):
            row.tame = tail <= _LIGHT
        return Outputs(called, signals, hist)

    def _correct(self, signals: NDArray[np.float64], squares: Floats) -> None:
        """Bring std and rms of sampled outputs in line with their exact sums of squares.

        A ratio estimate: of outputs that are mostly zero, or loud in few places, a sample alone knows too
        little.
        """
        _, _, rows, numel, _ = self._taken
        std, rms = (ACTIVATION_SIGNALS.index(name) for name in ("act.std", "act.rms"))
        factor = _by_how_much(squares, numel, signals[rms, rows])
        signals[std, rows] *= factor
        signals[rms, rows] *= factor

    def _lay_out(self, place: int, how: Plan, layout: Layout) -> None:
        self._rows.lay_out(place, how, layout)
        self._shapes = None


def _finite(extremes: NDArray[np.floating]) -> bool:
    return all(map(math.isfinite, extremes.tolist()))


def _by_how_much(squares: Floats, numel: Floats, rms: Floats) -> Floats:
    """The factor that brings the rms of a sample in line with the sum of squares of all elements."""
    with np.errstate(all="ignore"):
        factor = np.sqrt(squares / numel) / rms
    return np.where(np.isfinite(factor) & (factor > 0), factor, 1.0)


def _shape(row: Row) -> RowShape:
    how = row.plan
    if how is None:
        return RowShape(0, 0, 0, row.bounds)
    return RowShape(how.sample, how.pairs, how.units if row.judged else 0, row.bounds)
