"""What passes over all elements of large tensors tell: extremes, sums of squares, non-finite numbers.

Flow: tensors of one device in; out comes one small tensor of numbers on that device, and from its host copy
what was found. Very large tensors may be read in slices, one a time in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.sampling import extent_of, memory_of

HUGE = 2**20
"""Elements from which on a tensor may be read in slices."""
SLICES = 8

Floats = NDArray[np.float64]


class Found(NamedTuple):
    """Numbers of each tensor, shape [tensors]."""

    squares: Floats
    absmax: Floats
    """NaN if a NaN is there."""
    nonfinite: Floats


class _Piece(NamedTuple):
    """A tensor, or a slice of one, and the room for its numbers."""

    tensor: int
    part: slice | None
    turn: int | None
    """At which of SLICES looks in turn it is read; None at each."""
    low: Tensor
    high: Tensor
    squares: Tensor
    nonfinite: Tensor
    host: NDArray[np.floating] | None
    """The same four numbers, where the host can see them without waiting."""


class Passes:
    """Reads tensors of fixed layouts, which must not be empty.

    With `in_turn` each look reads one of SLICES slices of a tensor of HUGE elements or more; of the others it
    tells what was found last. What was not finite is read again at each look.
    """

    def __init__(
        self, tensors: Sequence[Tensor], dtype: torch.dtype, device: torch.device, *, in_turn: bool
    ) -> None:
        self._dtype, self._device = dtype, device
        cuts = [_cuts(tensor) if in_turn else [None] for tensor in tensors]
        places = [(i, part, turn) for i, parts in enumerate(cuts) for turn, part in enumerate(parts)]
        self.sliced = len(places) > len(tensors)
        """Whether any tensor is read in slices."""
        self._numbers = torch.zeros((len(places), 4), dtype=dtype, device=device)
        self._pieces = [self._piece(row, *place) for row, place in enumerate(places)]
        self._starts = np.array([row for row, (_, _, turn) in enumerate(places) if turn == 0], np.intp)
        self._again: list[bool] = [True] * len(places)
        """Pieces that were not read yet, or were not finite."""
        self._looks = 0

    def _piece(self, row: int, tensor: int, part: slice | None, turn: int) -> _Piece:
        numbers = self._numbers[row]
        low, high, squares, nonfinite = numbers.unbind()
        host = numbers.numpy() if self._device.type == "cpu" else None
        turn_of = None if part is None else turn
        return _Piece(tensor, part, turn_of, low, high, squares, nonfinite, host)

    def look(self, tensors: Sequence[Tensor], *, everything: bool) -> Tensor:
        """Read all elements, or those whose turn it is; return what `found` needs, flat."""
        turn, self._looks = self._looks % SLICES, self._looks + 1
        for piece, again in zip(self._pieces, self._again, strict=True):
            if everything or again or piece.turn is None or piece.turn == turn:
                tensor = tensors[piece.tensor]
                self._read(piece, tensor if piece.part is None else memory_of(tensor)[piece.part])
        return self._numbers.view(-1)

    def _read(self, piece: _Piece, values: Tensor) -> None:
        if values.dtype == self._dtype:
            torch.aminmax(values, out=(piece.low, piece.high))
        else:
            for bound, found in zip((piece.low, piece.high), torch.aminmax(values), strict=True):
                bound.copy_(found)
        # The second look finds it in the cache.
        if values.dtype == self._dtype and values.is_contiguous():
            # Twice as fast as a norm on the CPU.
            torch.dot(values.view(-1), values.view(-1), out=piece.squares)
        else:
            piece.squares.copy_(torch.linalg.vector_norm(values, dtype=self._dtype).square())
        if piece.host is not None and all(map(math.isfinite, piece.host[:2].tolist())):
            piece.host[3] = 0
        else:
            piece.nonfinite.copy_(values.numel() - values.isfinite().sum())

    def found(self, host: NDArray[np.floating]) -> Found:
        """What was found of each tensor, from the host copy of what `look` returned."""
        numbers = host.astype(np.float64).reshape(-1, 4)
        low, high, squares, nonfinite = numbers.T
        finite = np.isfinite(low) & np.isfinite(high)
        self._again = [not each for each in finite.tolist()]
        if self.sliced:
            low, high = np.minimum.reduceat(low, self._starts), np.maximum.reduceat(high, self._starts)
            squares, nonfinite = (np.add.reduceat(x, self._starts) for x in (squares, nonfinite))
        return Found(squares, np.maximum(np.abs(low), np.abs(high)), nonfinite)


def _cuts(tensor: Tensor) -> Sequence[slice | None]:
    """Slices of the memory of a huge tensor without gaps; else None, which stands for all of it."""
    numel = tensor.numel()
    if numel < HUGE or extent_of(tensor) != numel:
        return [None]
    edges = [numel * i // SLICES for i in range(SLICES + 1)]
    return [slice(*edge) for edge in pairwise(edges)]
