"""Where to look in a tensor, planned once for each layout: elements by chance, but always the same ones.

A plan names places in memory, counted from the tensor's first element, so that one indexed read takes a
sample of any layout. All units have as many elements in it, each unit in other parts of the batch.
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
"""Elements of an output that its moments and histogram are taken from, at least; smaller outputs are taken
whole."""
UNIT_SAMPLE = 64
"""Elements that each unit is judged by (dead, dormant), if there are so many."""
UNIT_SAMPLES = 4 * SAMPLE
"""Elements of all units together, at most, unless the sample itself has more."""
MAX_UNITS = 1024
"""Units that are looked at of an output that is not taken whole, about."""


_RUN = 16
"""Neighbours of a parameter that are looked at together: a line of the cache in single precision."""

Places = NDArray[np.int64]


class Plan(NamedTuple):
    """How outputs of one layout are sampled.

    The places are a matrix of shape [each, units], flat; the last `sample` of them are the sample. It begins
    with `pairs` elements and then their partners: the same unit and position in a sample of the batch half a
    batch away, so that the difference tells what the unit makes of its input. What stands before the sample
    shows more of each unit.
    """

    numel: int
    extent: int
    """From the first place in memory to behind the last one."""
    places: NDArray[np.signedinteger]
    sample: int
    pairs: int
    units: int
    each: int


@lru_cache(maxsize=512)
def plan(shape: tuple[int, ...], stride: tuple[int, ...], unit_dim: int | None, most: int = SAMPLE) -> Plan:
    """Plan a sample of a tensor of this layout, which is not empty: all of it if it has at most `most`
    elements; else so many or, since all units are to have as many, some more.

    `unit_dim` counts from 0; None if no unit will be judged.
    """
    numel, dim, batch = math.prod(shape), unit_dim, shape[0] if len(shape) > 1 and unit_dim != 0 else 1
    if dim is None:
        shape, stride, dim = (*shape, 1), (*stride, 1), len(shape)
    positions = numel // shape[dim]
    units = np.arange(shape[dim]) if numel <= most else _units(shape[dim], positions, most)
    judged_by = 0 if unit_dim is None else min(UNIT_SAMPLE, UNIT_SAMPLES // len(units))
    chosen, sample, pairs = _positions(batch, positions, -(-most // len(units)), judged_by, len(units))
    places = _addresses(chosen, shape, stride, dim) + units * stride[dim]
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return Plan(
        numel=numel,
        extent=extent,
        places=places.reshape(-1).astype(np.int32 if extent < 2**31 else np.int64),
        sample=sample * len(units),
        pairs=pairs * len(units),
        units=len(units),
        each=len(places),
    )


def _units(size: int, positions: int, most: int) -> Places:
    """Evenly spread units: MAX_UNITS or fewer, unless the sample needs more of them."""
    least = -(-most // min(positions, UNIT_SAMPLE))
    widest, wanted = max(1, size // least), -(-size // MAX_UNITS)
    steps = [*range(wanted, widest + 1), *range(min(wanted, widest), 0, -1)]
    # In step with no pattern of 2, 3 or 5, nor with the units.
    step = next(step for step in steps if math.gcd(step, 30 * size) == 1)
    return np.arange((size - 1) % step // 2, size, step)


def _positions(batch: int, positions: int, least: int, judged_by: int, units: int) -> tuple[Places, int, int]:
    """Positions in batch and space, counted sample by sample, to look at each unit in: shape [positions,
    units], or [positions, 1] if they are the same for all; how many are the sample; how many have partners.
    """
    sample, half = 2 * -(-least // 2), batch // 2 * (positions // batch)
    each, odd = min(positions, max(sample, judged_by)), batch > 1 and batch % 2 == 1
    if sample >= positions or (each == positions and odd):
        return np.arange(positions)[:, None], positions, half
    if half == 0:
        chosen = _by_chance(positions, sample, units)
    else:
        # The first half of an even batch: no element is taken twice.
        first = _by_chance(positions if odd else half, sample // 2, units)
        chosen = np.concatenate((first, (first + half) % positions))
    more = _others(chosen, positions) if each == positions else _by_chance(positions, each - sample, units)
    return np.concatenate((more, chosen)), sample, sample // 2 if half else 0


def _by_chance(numel: int, count: int, units: int) -> Places:
    """For each unit a place by chance, but always the same, in each of `count` equal stretches of 0..numel;
    shape [count, units]."""
    edges = np.arange(count + 1) * numel // count if count else np.zeros(1, np.int64)
    chance = np.random.default_rng(numel + count).random((count, units))
    return edges[:-1, None] + (chance * np.diff(edges)[:, None]).astype(np.int64)


def _others(chosen: Places, positions: int) -> Places:
    """The positions that were not chosen, for each unit."""
    free = np.ones((chosen.shape[1], positions), np.bool_)
    np.put_along_axis(free, chosen.T, False, axis=1)
    return np.nonzero(free)[1].reshape(len(free), -1).T


def _addresses(chosen: Places, shape: tuple[int, ...], stride: tuple[int, ...], dim: int) -> Places:
    """Where in memory these positions lie, of the unit that comes first."""
    others = [(size, step) for d, (size, step) in enumerate(zip(shape, stride, strict=True)) if d != dim]
    sizes, steps = zip(*others, strict=True) if others else ((1,), (0,))
    return np.tensordot(np.array(steps), np.array(np.unravel_index(chosen, sizes)), 1)


def memory_of(tensor: Tensor) -> Tensor:
    """The stretch of memory from the first to the last element, in which plans name places."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    return tensor.as_strided((extent_of(tensor),), (1,))


def extent_of(tensor: Tensor) -> int:
    """Elements of memory from the first to the last one of a tensor that is not empty."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


@lru_cache(maxsize=1024)
def places_of(shape: tuple[int, ...], stride: tuple[int, ...], most: int, device: torch.device) -> Tensor:
    """Places of short runs of neighbours, spread evenly: `most` places in all, of more elements than that.

    They are the same elements whatever the layout: of a gradient and of its second moment, say.
    """
    run = math.gcd(most, _RUN)
    numel, count = math.prod(shape), most // run
    edges = np.arange(count + 1) * numel // count
    chance = np.random.default_rng(numel).random(count)
    starts = edges[:-1] + (chance * (np.diff(edges) - run + 1)).astype(np.int64)
    places = np.array(np.unravel_index((starts[:, None] + np.arange(run)).reshape(-1), shape))
    return torch.from_numpy(np.tensordot(np.array(stride), places, 1)).to(device)


def whole(tensor: Tensor) -> Tensor:
    """The tensor as real numbers of one dimension or more; of a complex one both parts."""
    if not tensor.dim():
        tensor = tensor.reshape(1)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
