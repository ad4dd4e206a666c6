"""The elements of some tensors of one device in one flat buffer: small tensors whole, of large ones a sample
and what a pass over all elements tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    low: Tensor
    high: Tensor
    squares: Tensor


class Gathered:
    """Room for the elements of some tensors, of each at most SPREAD."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        device, sizes = tensors[0].device, np.array([tensor.numel() for tensor in tensors])
        counts = np.minimum(sizes, SPREAD)
        self._starts, self._counts = np.cumsum(counts) - counts, counts
        self.numel = sizes.astype(np.float64)
        self._share, self._dtype = self.numel / counts, dtype
        self.buffer = torch.empty(int(counts.sum()), dtype=dtype, device=device)
        rooms = self.buffer.split(counts.tolist())
        self._small = np.flatnonzero(sizes <= SPREAD).tolist()
        self._rooms = [rooms[i].view(tensors[i].shape) for i in self._small]
        self._of_large = np.flatnonzero(sizes > SPREAD)
        self._measured = torch.empty((len(self._of_large), 3), dtype=dtype, device=device)
        """Of all elements of each large tensor the lowest, the highest and the sum of squares."""
        self._large = [
            _Large(i, _places(tensors[i]), rooms[i], *measured.unbind())
            for i, measured in zip(self._of_large.tolist(), self._measured, strict=True)
        ]
        self._room, self._truth = (
            np.empty(len(self.buffer), _NUMPY[dtype]),
            np.empty(len(self.buffer), np.bool_),
        )
        self._shapes = [tensor.shape for tensor in tensors]
        self._strides = [tensors[large.place].stride() for large in self._large]

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these tensors have the layouts that the room was made for."""
        if [tensor.shape for tensor in tensors] != self._shapes:
            return False
        return [tensors[large.place].stride() for large in self._large] == self._strides

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

    def measure(self, tensors: Sequence[Tensor]) -> Tensor:
        """Look at all elements of the large tensors; return the numbers that `reduce` needs, flat.

        The numbers of non-finite elements are left out where the host sees without waiting that there are
        none.
        """
        for large in self._large:
            tensor = tensors[large.place]
            if tensor.dtype == self._dtype:
                torch.aminmax(tensor, out=(large.low, large.high))
            else:
                for bound, found in zip((large.low, large.high), torch.aminmax(tensor), strict=True):
                    bound.copy_(found)
            # The second look finds it in the cache.
            self._square(tensor, large.squares)
        found = self._measured.view(-1)
        if not self._large or (found.device.type == "cpu" and np.isfinite(found.numpy()).all()):
            return found
        bad = [t.numel() - t.isfinite().sum() for t in (tensors[large.place] for large in self._large)]
        return torch.cat([found, torch.stack(bad).to(found.dtype)])

    def _square(self, tensor: Tensor, out: Tensor) -> None:
        if tensor.dtype == self._dtype and tensor.is_contiguous():
            # Twice as fast as a norm on the CPU.
            torch.dot(tensor.view(-1), tensor.view(-1), out=out)
        else:
            out.copy_(torch.linalg.vector_norm(tensor, dtype=self._dtype).square())

    def _squares(self, host: Host) -> Floats:
        """Sum of squares over the sampled elements of each tensor."""
        np.multiply(host, host, out=self._room)
        found = np.add.reduceat(self._room, self._starts).astype(np.float64)
        if (
            self._dtype == torch.float64
            or ((found > self._counts * _SMALL_SQUARE) & np.isfinite(found)).all()
        ):
            return found
        return np.add.reduceat(np.square(host, dtype=np.float64), self._starts)

    def apart(self, host: Host, other: Host) -> Floats:
        """Sum of squared differences over all elements of each tensor, estimated from the sample."""
        return self._squares(np.subtract(host, other)) * self._share

    def zeros(self, host: Host) -> Floats:
        """Number of exact zeros among all elements of each tensor, estimated from the sample."""
        zero = np.equal(host, 0, out=self._truth)
        if not zero.any():
            return np.zeros(len(self.numel))
        return np.add.reduceat(zero.view(np.uint8), self._starts, dtype=np.int32) * self._share

    def reduce(self, host: Host, large: Host) -> tuple[Floats, Floats, Floats]:
        """Sum of squares, largest abs(x) and number of non-finite elements of each tensor.

        `host` is the host copy of the buffer, `large` that of what `measure` returned.
        """
        squares = self._squares(host)
        absmax = np.maximum.reduceat(np.abs(host, out=self._room), self._starts).astype(np.float64)
        bad = np.zeros(len(squares))
        if not np.isfinite(absmax).all():
            bad = np.add.reduceat(~np.isfinite(host), self._starts, dtype=np.float64)
        if self._large:
            places, count = self._of_large, len(self._large)
            low, high, total = large[: 3 * count].astype(np.float64).reshape(-1, 3).T
            absmax[places] = np.maximum(np.abs(low), np.abs(high))
            bad[places] = large[3 * count :] if len(large) > 3 * count else 0.0
            # Squares that left single precision are those of the sample, which are taken in double.
            exact = (total > self.numel[places] * _SMALL_SQUARE) & np.isfinite(total)
            exact |= ~np.isfinite(absmax[places])
            squares[places] = np.where(exact, total, (squares * self._share)[places])
        return squares, absmax, bad


def _places(tensor: Tensor) -> Tensor:
    return places_of(tuple(tensor.shape), tensor.stride(), SPREAD, tensor.device)
