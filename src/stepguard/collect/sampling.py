"""Where to look in a tensor, planned once for each layout: evenly spread elements, none of them copied more
than once.

A plan names places in memory, counted from the tensor's first element, and views of it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 4096
"""Elements of an output that its moments and histogram are taken from; smaller outputs are taken whole."""
UNIT_SAMPLE = 64
"""Elements that each unit is judged by (dead, dormant), if there are so many."""
UNIT_SAMPLES = (SAMPLE, 4 * SAMPLE)
"""Elements of all units together, at least and at most; smaller outputs are taken whole."""
MAX_UNITS = 1024
"""Units that are judged of an output that is not taken whole."""

_LEFT_OUT = 0.035
"""Share of a half that a grid may leave out at its ends."""

Places = NDArray[np.int64]


class Strided(NamedTuple):
    """Arguments of `as_strided`, with the tensor's own offset."""

    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The view of this tensor."""
        return tensor.as_strided(self.size, self.stride)


class Grid(NamedTuple):
    """Evenly spread places as a strided view, which is read three times as fast as places from a list."""

    start: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The elements of a tensor whose memory has no gaps."""
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.start)

    def places(self) -> Places:
        """The places in memory, in the order of the view."""
        found = np.full(1, self.start)
        for size, stride in zip(self.size, self.stride, strict=True):
            found = (found[:, None] + np.arange(size) * stride).reshape(-1)
        return found


class Plan(NamedTuple):
    """How outputs of one layout are sampled.

    The places are those of some elements, then as many of their partners: the same unit and position in a
    sample of the batch half a batch away, so that the difference tells what the unit makes of its input. Then
    come elements without a partner: of a small output those that an odd batch leaves over, of a batch of one
    all.
    """

    numel: int
    places: Places
    pairs: int
    units: Strided
    others: tuple[int, ...]
    """Dimensions of `units` that are not the units."""
    judged: int
    """How many units are judged."""
    grid: Grid | None
    """The same places as a view of memory, where they have one."""


@lru_cache(maxsize=4096)
def plan(shape: tuple[int, ...], stride: tuple[int, ...], unit_dim: int, most: int = SAMPLE) -> Plan | None:
    """Plan a sample of at most `most` elements of a tensor of this layout, which is not empty.

    `unit_dim` counts from 0. None if the tensor has to be made contiguous first.
    """
    numel = math.prod(shape)
    if not _dense(shape, stride):
        return None
    batch, step = (shape[0], stride[0]) if len(shape) > 1 else (1, 1)
    grid = _paired_grid(shape, numel, step, most)
    if numel <= most:
        places, pairs = _all_places(numel, batch, step)
    elif grid is not None:
        places, pairs = grid.places(), most // 2
    else:
        places, pairs = _some_places(numel, batch, step, most)
    units = _units(shape, stride, unit_dim)
    others = tuple(dim for dim in range(len(shape)) if dim != unit_dim)
    return Plan(numel, places, pairs, units, others, units.size[unit_dim], grid)


def _paired_grid(shape: tuple[int, ...], numel: int, step: int, most: int) -> Grid | None:
    """A grid in the first half of an even batch and its like in the second half, if memory holds one sample
    after the other; None if the grid would leave too much out.
    """
    if len(shape) < 2 or shape[0] % 2 or step != numel // shape[0] or numel <= most:
        return None
    half = numel // 2
    found = _stride_over(half, most // 2, shape)
    if found is None or half - most // 2 * found > _LEFT_OUT * half:
        return None
    return Grid((half - most // 2 * found) // 2, (2, most // 2), (half, found))


def _stride_over(numel: int, count: int, shape: tuple[int, ...]) -> int | None:
    """The widest stride for so many places that falls in step with no pattern of 2, 3 or 5, nor with a
    dimension; None if there is none but 1.
    """
    against = 30 * math.prod(shape)
    return next((step for step in range(numel // count, 1, -1) if math.gcd(step, against) == 1), None)


def _all_places(numel: int, batch: int, step: int) -> tuple[Places, int]:
    """Every element once; the first half of the batch is paired with the second."""
    places, apart = np.arange(numel), batch // 2
    sample = places // step % batch
    first = places[sample < apart]
    rest = places[sample >= 2 * apart]
    return np.concatenate((first, first + apart * step, rest)), len(first)


def _some_places(numel: int, batch: int, step: int, most: int) -> tuple[Places, int]:
    """One element, by chance but always the same, in each of `most / 2` equal stretches of memory, and
    partners.

    A whole-number stride would fall in step with channels or leave the end of the tensor out.
    """
    each = numel // batch
    # The first half of an even batch, if memory holds one sample after the other: no element is taken twice.
    halves = batch % 2 == 0 and step == each
    first = _by_chance(numel // 2 if halves else numel, most // 2)
    if batch == 1:
        return np.concatenate((first, (first + numel // 2) % numel)), 0
    sample = first // step % batch
    return np.concatenate((first, first + ((sample + batch // 2) % batch - sample) * step)), len(first)


@lru_cache(maxsize=4096)
def _by_chance(numel: int, count: int) -> Places:
    """A place by chance, but always the same, in each of `count` equal stretches of 0..numel."""
    edges = np.arange(count + 1) * numel // count
    chance = np.random.default_rng(numel).random(count)
    return edges[:-1] + (chance * np.diff(edges)).astype(np.int64)


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill one stretch of memory without gap or overlap, in any order of dimensions."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def _units(shape: tuple[int, ...], stride: tuple[int, ...], unit_dim: int) -> Strided:
    """See at most MAX_UNITS units, each through UNIT_SAMPLE elements or as many as UNIT_SAMPLES allows."""
    if math.prod(shape) <= SAMPLE:
        return Strided(shape, stride)
    least, most = UNIT_SAMPLES
    most = min(max(UNIT_SAMPLE * shape[unit_dim], least), most)
    steps = [1] * len(shape)
    steps[unit_dim] = _step_over(shape[unit_dim])
    others = [dim for dim in range(len(shape)) if dim != unit_dim]

    def sizes() -> list[int]:
        return [-(-size // step) for size, step in zip(shape, steps, strict=True)]

    while math.prod(sizes()) > most:
        widest = max(others, key=lambda dim: sizes()[dim])
        if sizes()[widest] == 1:
            break
        steps[widest] += 1 if steps[widest] < 4 else steps[widest] // 2
    return Strided(tuple(sizes()), tuple(s * k for s, k in zip(stride, steps, strict=True)))


def _step_over(units: int) -> int:
    """From one unit that is judged to the next: falls in step with no pattern of 2, 3 or 5, nor with the
    units.
    """
    step = -(-units // MAX_UNITS)
    while step > 1 and math.gcd(step, 30 * units) > 1:
        step += 1
    return step


def spread(tensor: Tensor, most: int) -> Tensor:
    """At most `most` evenly spread elements of a tensor, shape [n]; all of a smaller one."""
    numel = tensor.numel()
    if not _dense(tensor.shape, tensor.stride()):
        tensor = tensor.contiguous()
    if numel > most and (grid := _grid(tuple(tensor.shape), numel, most)) is not None:
        return grid.of(tensor)
    flat = tensor.as_strided((numel,), (1,), tensor.storage_offset())
    return flat if numel <= most else flat.index_select(0, _places_on(tensor.device, numel, most))


@lru_cache(maxsize=4096)
def _grid(shape: tuple[int, ...], numel: int, most: int) -> Grid | None:
    found = _stride_over(numel, most, shape)
    if found is None or numel - most * found > 2 * _LEFT_OUT * numel:
        return None
    return Grid((numel - most * found) // 2, (most,), (found,))


@lru_cache(maxsize=4096)
def _places_on(device: torch.device, numel: int, count: int) -> Tensor:
    return torch.from_numpy(_by_chance(numel, count)).to(device)


def whole(tensor: Tensor) -> Tensor:
    """The tensor as real numbers, detached, of one dimension or more; of a complex one both parts."""
    tensor = tensor.detach()
    if not tensor.dim():
        tensor = tensor.reshape(1)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
