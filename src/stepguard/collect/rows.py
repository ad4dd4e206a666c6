"""The buffers that samples of many layers' outputs lie in: one row a layer, cut to the layout of its output.

A row of samples holds what shows more of the units, then, from a column that is the same for all rows, the
sample itself, then zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.sampling import Plan

Layout = tuple[tuple[int, ...], tuple[int, ...], int | None]
"""Shape, stride and the dimension of the units."""

_UPLOADED = 128
"""Plans whose places are kept on the device."""
_WORDS = 64
"""Widths are multiples of it."""


class OnHost(NamedTuple):
    """What a row holds, in the host's own memory."""

    sample: NDArray[np.floating]
    extremes: NDArray[np.floating]
    """The lowest and the highest number."""


class Row:
    """One layer's place in the buffers."""

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self.bounds = bounds
        """The output is flat at and beyond these; None if it is nowhere."""
        self.layout: Layout | None = None
        self.plan: Plan | None = None
        self.where = self.sample = self.low = self.high = torch.empty(0)
        """Where the plan looks, and the buffers."""
        self.host: OnHost | None = None
        """The same where the host can see it without waiting."""
        self.tame = False
        """Whether the last sample had tails so light that moments need no more than the next one."""

    @property
    def judged(self) -> bool:
        """Whether its units are."""
        return self.plan is not None and self.layout is not None and self.layout[2] is not None


class _Judged(NamedTuple):
    """Neighbouring rows whose units are alike."""

    sizes: Tensor
    """Shape [rows, each, units]."""
    sums: Tensor
    """Shape [rows, units]."""


class Rows(list[Row]):
    """The rows of one device, number format and width.

    `width` is the room for the smallest sample of a large output; a sample may be a little larger.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype
        self._before, self._width, self._units = 0, width, 0
        self._room = 0
        self._make_room(0)
        self._judged: list[_Judged] | None = None
        self._uploaded: dict[int, tuple[Plan, Tensor]] = {}
        """By the identity of their plans, which are kept alive with them."""

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    @property
    def sample(self) -> Tensor:
        """Shape [rows, width]; zeros behind what counts."""
        return self._all[: len(self), self._before :]

    @property
    def units(self) -> Tensor:
        """Sums of abs(x) of each unit, shape [rows, units]; zeros behind what counts."""
        return self._sums[: len(self)]

    @property
    def extremes(self) -> Tensor:
        """Lowest and highest number, shape [rows, 2]."""
        return self._extremes[: len(self)]

    def add(self, bounds: tuple[float, float] | None) -> int:
        """Make room for one more layer; return its row."""
        self.append(Row(bounds))
        if len(self) > self._room:
            self._make_room(len(self) + len(self) // 4)
        self._cut(len(self) - 1)
        return len(self) - 1

    def lay_out(self, place: int, how: Plan, layout: Layout) -> None:
        """Cut a row for outputs of another layout than its last one."""
        row = self[place]
        same, row.layout, row.plan = how is row.plan, layout, how
        if same:
            return
        row.where = self._where(how)
        before, sample = len(how.places) - how.sample, how.sample
        if before > self._before or sample > self._width or how.units > self._units:
            old = self._before, self._width
            self._before, self._width = max(before, old[0]), max(-(-sample // _WORDS) * _WORDS, old[1])
            self._units = max(how.units, self._units)
            self._make_room(self._room, *old)
        self._all[place], self._sums[place] = 0, 0
        self._cut(place)

    def _where(self, how: Plan) -> Tensor:
        """The places of a plan on the device: an upload waits for it, so those of the last plans stay."""
        if id(how) not in self._uploaded:
            if len(self._uploaded) == _UPLOADED:
                self._uploaded.clear()
            self._uploaded[id(how)] = how, torch.from_numpy(how.places).to(self.device)
        return self._uploaded[id(how)][1]

    def _make_room(self, room: int, before: int | None = None, width: int | None = None) -> None:
        """Enlarge the buffers; what was put in stays. `before` and `width` are those of the old ones."""
        samples, sums = self._zeros(room, self._before + self._width), self._zeros(room, self._units)
        extremes = self._zeros(room, 2)
        if self._room:
            left = self._before - (self._before if before is None else before)
            samples[: self._room, left : left + self._all.shape[1]] = self._all
            sums[: self._room, : self._sums.shape[1]], extremes[: self._room] = self._sums, self._extremes
        self._all, self._sums, self._extremes, self._room = samples, sums, extremes, room
        self._sizes = torch.empty_like(samples)
        for place in range(len(self)):
            self._cut(place)

    def _cut(self, place: int) -> None:
        row, extremes = self[place], self._extremes[place]
        row.low, row.high = extremes.unbind()
        if row.plan is not None:
            end = self._before + row.plan.sample
            row.sample = self._all[place, end - len(row.plan.places) : end]
        if self.device.type == "cpu":
            row.host = OnHost(row.sample.numpy(), extremes.numpy())
        self._judged = None

    def judge(self) -> None:
        """Sum the sizes of each unit in what the rows hold, into `units`."""
        if self._judged is None:
            self._judged = list(self._alike())
        torch.abs(self._all[: len(self)], out=self._sizes[: len(self)])
        for sizes, sums in self._judged:
            torch.sum(sizes, 1, out=sums)

    def _alike(self) -> Iterator[_Judged]:
        begin = 0
        for shape, rows in groupby(self, _judged_by):
            count = len(list(rows))
            if shape is not None:
                each, units, sample = shape
                end = self._before + sample
                sizes = self._sizes[begin : begin + count, end - each * units : end]
                yield _Judged(sizes.unflatten(1, (each, units)), self._sums[begin : begin + count, :units])
            begin += count


def _judged_by(row: Row) -> tuple[int, int, int] | None:
    how = row.plan
    return (how.each, how.units, how.sample) if how is not None and row.judged else None
