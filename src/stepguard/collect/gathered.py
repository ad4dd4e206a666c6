"""Elements of some tensors of one device in one flat buffer: small tensors whole, of large ones a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepguard.collect.passes import Found
from stepguard.collect.sampling import memory_of, places_of

SPREAD = 4096
"""Elements of a parameter that show its zero gradients and its update; smaller ones are taken whole."""

_SMALL_SQUARE = 1e-34
"""Elements whose squares are smaller on average begin to leave single precision."""
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}

Floats = NDArray[np.float64]
Host = NDArray[np.floating]


class _Large(NamedTuple):
    """A tensor that is not taken whole."""

    place: int
    where: Tensor
    room: Tensor


class Gathered:
    """Room for the elements of some tensors, of each at most SPREAD."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        device, sizes = tensors[0].device, np.array([tensor.numel() for tensor in tensors])
        counts = np.minimum(sizes, SPREAD)
        self.starts, self.counts = np.cumsum(counts) - counts, counts
        self.numel = sizes.astype(np.float64)
        self._share, self._dtype = self.numel / counts, dtype
        self.buffer = torch.empty(int(counts.sum()), dtype=dtype, device=device)
        rooms = self.buffer.split(counts.tolist())
        self._small = np.flatnonzero(sizes <= SPREAD).tolist()
        self._rooms = [rooms[i].view(tensors[i].shape) for i in self._small]
        self.large = np.flatnonzero(sizes > SPREAD).tolist()
        """Places of the tensors that are not taken whole."""
        self._large = [_Large(i, _places(tensors[i]), rooms[i]) for i in self.large]
        self._room, self._truth = (
            np.empty(len(self.buffer), _NUMPY[dtype]),
            np.empty(len(self.buffer), np.bool_),
        )
        self._shapes = [tensor.shape for tensor in tensors]
        self._strides = [tensors[i].stride() for i in self.large]

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these tensors have the layouts that the room was made for."""
        if [tensor.shape for tensor in tensors] != self._shapes:
            return False
        return [tensors[i].stride() for i in self.large] == self._strides

    def gather(self, tensors: Sequence[Tensor]) -> None:
        """Copy the elements in."""
        if self._small:
            torch._foreach_copy_(self._rooms, [tensors[i] for i in self._small])  # pyright: ignore
        for large in self._large:
            memory = memory_of(tensors[large.place])
            if memory.dtype == self._dtype:
                torch.index_select(memory, 0, large.where, out=large.room)
            else:
                large.room.copy_(memory.index_select(0, large.where))

    def where(self, places: Sequence[int]) -> NDArray[np.intp]:
        """Which elements of the buffer belong to some of the tensors."""
        ends = self.starts + self.counts
        return np.concatenate([np.arange(self.starts[i], ends[i]) for i in places])

    def _squares(self, host: Host) -> Floats:
        """Sum of squares over the sampled elements of each tensor."""
        np.multiply(host, host, out=self._room)
        found = np.add.reduceat(self._room, self.starts).astype(np.float64)
        if self._dtype == torch.float64 or ((found > self.counts * _SMALL_SQUARE) & np.isfinite(found)).all():
            return found
        return np.add.reduceat(np.square(host, dtype=np.float64), self.starts)

    def apart(self, host: Host, other: Host) -> Floats:
        """Sum of squared differences over all elements of each tensor, estimated from the sample."""
        return self._squares(np.subtract(host, other)) * self._share

    def zeros(self, host: Host) -> Floats:
        """Number of exact zeros among all elements of each tensor, estimated from the sample."""
        zero = np.equal(host, 0, out=self._truth)
        if not zero.any():
            return np.zeros(len(self.numel))
        return np.add.reduceat(zero.view(np.uint8), self.starts, dtype=np.int32) * self._share

    def reduce(self, host: Host, large: Found) -> tuple[Floats, Floats, Floats]:
        """Sum of squares, largest abs(x) and number of non-finite elements of each tensor.

        `host` is the host copy of the buffer, `large` what passes over the large tensors found.
        """
        squares = self._squares(host)
        absmax = np.maximum.reduceat(np.abs(host, out=self._room), self.starts).astype(np.float64)
        bad = np.zeros(len(squares))
        if not np.isfinite(absmax).all():
            bad = np.add.reduceat(~np.isfinite(host), self.starts, dtype=np.float64)
        if self.large:
            places, total = self.large, large.squares
            absmax[places], bad[places] = large.absmax, large.nonfinite
            # Squares that left single precision are those of the sample, which are taken in double.
            exact = (total > self.numel[places] * _SMALL_SQUARE) & np.isfinite(total)
            exact |= ~np.isfinite(large.absmax)
            squares[places] = np.where(exact, total, (squares * self._share)[places])
        return squares, absmax, bad


def _places(tensor: Tensor) -> Tensor:
    return places_of(tuple(tensor.shape), tensor.stride(), SPREAD, tensor.device)
