"""Where to look in a tensor: evenly spread elements as strided views, planned once for each shape.

A plan never copies: it says with which sizes and strides `Tensor.as_strided` sees the sample.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLE = 4096
"""Elements of an output that its moments and histogram are taken from; smaller outputs are taken whole."""
UNIT_SAMPLE = 64
"""Elements that each unit is judged by (dead, dormant), if there are so many."""
UNIT_SAMPLES = (SAMPLE, 4 * SAMPLE)
"""Elements of all units together, at least and at most; smaller outputs are taken whole."""
MAX_UNITS = 1024


class Strided(NamedTuple):
    """Arguments of `as_strided`; the offset is added to the tensor's own."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The view of this tensor."""
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)


class Plan(NamedTuple):
    """How one shape of output is sampled.

    The sample is two rows: `halves` sees an element and, in the same column, the same unit and position in a
    sample of the batch half a batch away, so that their difference tells what the unit makes of its
    input. `rest` is what an odd batch that is taken whole leaves over.
    """

    halves: Strided
    rest: Strided | None
    units: Strided
    others: tuple[int, ...]
    """Dimensions of `units` that are not the units."""
    shape: tuple[int, int, int, int]
    """Columns of `halves`, elements of `rest`, columns that are such pairs (none of a batch of one),
    units.
    """


@lru_cache(maxsize=4096)
def plan(shape: tuple[int, ...], stride: tuple[int, ...], unit_dim: int, most: int = SAMPLE) -> Plan | None:
    """Plan a sample of at most `most` elements of a tensor of this layout, which is not empty.

    `unit_dim` counts from 0. None if the tensor has to be made contiguous first.
    """
    numel = math.prod(shape)
    if not _dense(shape, stride):
        return None
    batch, each = shape[0], numel // shape[0]
    batched = len(shape) > 1 and batch > 1 and stride[0] == each
    apart = batch // 2 if batched else 1
    half = apart * each if batched else numel // 2
    offset = half
    if numel > most:
        step = _coprime_step(((batch - apart) * each if batched else half) * 2 // most, each)
        halves, rest = Strided((2, most // 2), (offset, step)), None
    else:
        halves = Strided((2, half), (offset, 1))
        left = numel - 2 * half
        rest = Strided((left,), (1,), 2 * half) if left else None
    units = _units(shape, stride, unit_dim)
    others = tuple(dim for dim in range(len(shape)) if dim != unit_dim)
    columns = halves.size[1]
    left = 0 if rest is None else rest.size[0]
    return Plan(halves, rest, units, others, (columns, left, columns if batched else 0, units.size[unit_dim]))


def spread(tensor: Tensor, most: int) -> Tensor:
    """A view of at most `most` evenly spread elements of a dense tensor, shape [n]."""
    numel = tensor.numel()
    if not _dense(tuple(tensor.shape), tensor.stride()):
        tensor = tensor.contiguous()
    step = _coprime_step(numel // most, numel) if numel > most else 1
    return Strided((min(numel, most),), (step,)).of(tensor)


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill one stretch of memory without gap or overlap, in any order of dimensions."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def _coprime_step(step: int, period: int) -> int:
    """The largest step up to `step` that shares no factor with the period.

    So the sample walks through all residues and never falls into step with channels or rows.
    """
    while step > 1 and math.gcd(step, period) > 1:
        step -= 1
    return max(step, 1)


def _units(shape: tuple[int, ...], stride: tuple[int, ...], unit_dim: int) -> Strided:
    """See at most MAX_UNITS units, each through UNIT_SAMPLE elements or as many as UNIT_SAMPLES allows."""
    least, most = UNIT_SAMPLES
    most = min(max(UNIT_SAMPLE * shape[unit_dim], least), most)
    steps = [1] * len(shape)
    steps[unit_dim] = -(-shape[unit_dim] // MAX_UNITS)
    others = [dim for dim in range(len(shape)) if dim != unit_dim]

    def sizes() -> list[int]:
        return [-(-size // step) for size, step in zip(shape, steps, strict=True)]

    while math.prod(sizes()) > most:
        widest = max(others, key=lambda dim: sizes()[dim])
        if sizes()[widest] == 1:
            break
        steps[widest] += 1 if steps[widest] < 4 else steps[widest] // 2
    return Strided(tuple(sizes()), tuple(s * k for s, k in zip(stride, steps, strict=True)))


def whole(tensor: Tensor) -> Tensor:
    """The tensor as real numbers, detached, of one dimension or more; of a complex one both parts."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.dim() else tensor.reshape(1)
