"""What passes over all elements of large tensors tell: extremes, sums of squares, non-finite numbers.

Flow: tensors of one device in; out comes one small tensor of numbers on that device, and from its host copy
what was found. The extremes of large tensors, and huge tensors altogether, may be read in slices, one a time
in turn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.sampling import extent_of, memory_of

LARGE = 2**15
"""Elements from which on a tensor's extremes may be looked for in slices: they cost twice the squares."""
HUGE = 2**20
"""Elements from which on a tensor may be read in slices."""
SLICES = 8
_SPARSE_SLICE = 2**18
"""Elements of a slice, at most, where a step changes few rows: one that nobody uses may wait for its turn."""

Floats = NDArray[np.float64]


class Found(NamedTuple):
    """Numbers of each tensor, shape [tensors]."""

    squares: Floats
    absmax: Floats
    """NaN if a NaN is there."""
    nonfinite: Floats


class _Stretch(NamedTuple):
    """A tensor, or a part of its memory, and the room for the extremes there."""

    part: slice | None
    low: Tensor
    high: Tensor


class _Piece(NamedTuple):
    """A tensor, or a slice of one, and the room for its numbers."""

    part: slice | None
    squares: Tensor
    nonfinite: Tensor
    stretches: Sequence[_Stretch]
    """Where its extremes are looked for: all at once, or one a look in turn."""
    host: NDArray[np.floating] | None
    """The same numbers, where the host can see them without waiting."""

    def finite(self) -> bool:
        """Whether nothing that was found is NaN or infinite, as far as the host can tell."""
        return self.host is not None and all(map(math.isfinite, self.host.tolist()))


class Passes:
    """Reads tensors of fixed layouts, which must not be empty.

    Each look looks in one of SLICES slices of a LARGE tensor for its extremes, unless `exact`, and reads one
    of a tensor of HUGE elements or more, if `in_turn`; of the others it tells what was found last. What was
    not finite is read again at each look. Slices are smaller of tensors that are `sparse`, by their places:
    a step changes few rows of them.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        dtype: torch.dtype,
        device: torch.device,
        *,
        in_turn: bool,
        exact: bool = False,
        sparse: Collection[int] = (),
    ) -> None:
        self._dtype, self._device = dtype, device
        cuts = [
            _cuts(tensor, HUGE, tensor.numel() // _SPARSE_SLICE if place in sparse else SLICES)
            if in_turn
            else [None]
            for place, tensor in enumerate(tensors)
        ]
        self.sliced = any(len(parts) > 1 for parts in cuts)
        """Whether any tensor is read in slices."""
        # On another device a call costs more than what it reads.
        few = device.type == "cpu" and not exact
        finer = [_cuts(tensor, LARGE, SLICES) if few else [None] for tensor in tensors]
        self._most = max(map(len, finer), default=1)
        rows = sum(map(len, cuts))
        self._numbers = torch.zeros((rows, 2 + 2 * self._most), dtype=dtype, device=device)
        room = iter(self._numbers)
        self._pieces = [
            [self._piece(next(room), part, stretches if part is None else [None]) for part in parts]
            for parts, stretches in zip(cuts, finer, strict=True)
        ]
        """Of each tensor."""
        self._starts = np.cumsum([0, *map(len, cuts[:-1])])
        self._again = [set(range(len(parts))) for parts in cuts]
        """Of each tensor the pieces that were not read yet, or were not finite."""
        self._looks = 0

    def _piece(self, room: Tensor, part: slice | None, stretches: Sequence[slice | None]) -> _Piece:
        squares, nonfinite, *bounds = room.unbind()
        found = [_Stretch(*each) for each in zip(stretches, bounds[::2], bounds[1::2], strict=False)]
        host = room.numpy() if self._device.type == "cpu" else None
        return _Piece(part, squares, nonfinite, found, host)

    def look(self, tensors: Sequence[Tensor], *, everything: bool) -> Tensor:
        """Read all elements, or those whose turn it is; return what `found` needs, flat."""
        look, self._looks = self._looks, self._looks + 1
        for tensor, pieces, again in zip(tensors, self._pieces, self._again, strict=True):
            for place in range(len(pieces)) if everything else again | {look % len(pieces)}:
                piece = pieces[place]
                values = tensor if piece.part is None else memory_of(tensor)[piece.part]
                stretches = piece.stretches
                if len(stretches) > 1 and not (everything or place in again):
                    stretches = stretches[look % SLICES : look % SLICES + 1]
                self._read(piece, values, stretches)
        return self._numbers.view(-1)

    def _read(self, piece: _Piece, values: Tensor, stretches: Sequence[_Stretch]) -> None:
        if values.dtype == self._dtype and values.is_contiguous():
            # Twice as fast as a norm on the CPU.
            torch.dot(values.view(-1), values.view(-1), out=piece.squares)
        else:
            piece.squares.copy_(torch.linalg.vector_norm(values, dtype=self._dtype).square())
        if len(stretches) < len(piece.stretches) and not piece.finite():
            stretches = piece.stretches
        for part, *bounds in stretches:
            self._extremes(values if part is None else memory_of(values)[part], bounds)
        if piece.host is not None and piece.finite():
            piece.host[1] = 0
        else:
            piece.nonfinite.copy_(values.numel() - values.isfinite().sum())

    def _extremes(self, values: Tensor, bounds: Sequence[Tensor]) -> None:
        if values.dtype == self._dtype:
            torch.aminmax(values, out=tuple(bounds))
        else:
            for bound, found in zip(bounds, torch.aminmax(values), strict=True):
                bound.copy_(found)

    def found(self, host: NDArray[np.floating]) -> Found:
        """What was found of each tensor, from the host copy of what `look` returned."""
        numbers = host.astype(np.float64).reshape(self._numbers.shape)
        squares, nonfinite = numbers[:, :2].T
        # Where there is but one stretch, the room of the others holds zeros.
        absmax = np.abs(numbers[:, 2:]).max(axis=1)
        self._read_again(np.flatnonzero(~np.isfinite(absmax)))
        if self.sliced:
            absmax = np.maximum.reduceat(absmax, self._starts)
            squares, nonfinite = (np.add.reduceat(x, self._starts) for x in (squares, nonfinite))
        return Found(squares, absmax, nonfinite)

    def _read_again(self, rows: NDArray[np.intp]) -> None:
        self._again = [set[int]() for _ in self._pieces]
        tensors = np.searchsorted(self._starts, rows, side="right") - 1
        for tensor, row in zip(tensors.tolist(), rows.tolist(), strict=True):
            self._again[tensor].add(row - int(self._starts[tensor]))


def _cuts(tensor: Tensor, least: int, slices: int) -> Sequence[slice | None]:
    """Slices of the memory of a tensor of so many elements without gaps; else None, which stands for all."""
    numel = tensor.numel()
    if numel < least or extent_of(tensor) != numel:
        return [None]
    slices = max(slices, SLICES)
    edges = [numel * i // slices for i in range(slices + 1)]
    return [slice(*edge) for edge in pairwise(edges)]
