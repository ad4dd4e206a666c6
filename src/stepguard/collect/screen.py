"""Whether gradients are finite, for the price of reading them once: numbers on the device, few calls.

Flow: the gradients of one device in; out come sums that are finite if every element is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALL = 2**15
"""Elements up to which a tensor is copied to the others, to be added up with them: less than a call costs."""


class Screen:
    """Adds up tensors, of which the small ones have a room together as long as their layouts stay.

    It samples nothing: a sum is finite only if all its terms are. One that overflows is a false alarm, which
    a closer look at all elements settles.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._shapes: list[torch.Size] = []
        self._small: list[int] = []
        self._large: list[int] = []
        self._rooms: list[Tensor] = []
        self._buffer = torch.empty(0)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums of no dimension, together over all elements."""
        if [tensor.shape for tensor in tensors] != self._shapes:
            self._make_room(tensors)
        sums = [tensors[i].sum(dtype=self._dtype) for i in self._large]
        if self._small:
            torch._foreach_copy_(self._rooms, [tensors[i] for i in self._small])  # pyright: ignore
            sums.append(self._buffer.sum())
        return sums

    def _make_room(self, tensors: Sequence[Tensor]) -> None:
        self._shapes = [tensor.shape for tensor in tensors]
        sizes = [tensor.numel() for tensor in tensors]
        self._small = [i for i, size in enumerate(sizes) if size <= _SMALL]
        self._large = [i for i, size in enumerate(sizes) if size > _SMALL]
        counts = [sizes[i] for i in self._small]
        self._buffer = torch.empty(sum(counts), dtype=self._dtype, device=tensors[0].device)
        rooms = zip(self._small, self._buffer.split(counts), strict=True)
        self._rooms = [room.view(tensors[i].shape) for i, room in rooms]
