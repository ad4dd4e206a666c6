"""Where the sampler looks: inside the tensor, at all places once where it is taken whole, evenly
elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepguard.collect.sampling import Plan, memory_of, places_of, plan

SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=5)
MOST = st.sampled_from([64, 256, 1024, 4096])


def numbered(shape: list[int], order: list[int]) -> Tensor:
    """A dense tensor in any order of dimensions, in which each element holds its own place, from 1."""
    return torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(shape).permute(order)


def surrounded(tensor: Tensor) -> Tensor:
    """The same in the middle of a larger memory that is full of NaN."""
    numel, margin = tensor.numel(), 5000
    memory = torch.full((numel + 2 * margin,), math.nan, dtype=tensor.dtype)
    inside = memory.as_strided(tensor.shape, tensor.stride(), margin)
    inside.copy_(tensor)
    return inside


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(SHAPES)
    return surrounded(numbered(shape, draw(st.permutations(range(len(shape))))))


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """Tensors of any layout: dense, with gaps, expanded."""
    tensor = draw(tensors())
    dim = draw(st.integers(0, tensor.dim() - 1))
    kind = draw(st.sampled_from(["dense", "gaps", "expanded"]))
    if kind == "gaps":
        return tensor.movedim(dim, 0)[::2].movedim(0, dim)
    return tensor.narrow(dim, 0, 1).expand(tensor.shape) if kind == "expanded" else tensor


def spread(tensor: Tensor, most: int) -> Tensor:
    """What is looked at of a parameter: all of a small one."""
    if tensor.numel() <= most:
        return tensor.reshape(-1)
    return memory_of(tensor)[places_of(tuple(tensor.shape), tensor.stride(), most, tensor.device)]


def planned(tensor: Tensor, most: int, unit_dim: int | None = None) -> Plan:
    return plan(tuple(tensor.shape), tensor.stride(), unit_dim, most)


def looked_at(tensor: Tensor, how: Plan) -> Tensor:
    """What a plan looks at, shape [each, units]."""
    memory = tensor.as_strided((how.extent,), (1,), tensor.storage_offset())
    return memory[torch.from_numpy(how.places).long()].view(how.each, how.units)


@settings(deadline=None, max_examples=150)
@given(views(), MOST, st.integers(0, 4))
def test_a_plan_stays_inside_and_has_all_it_is_asked_for(tensor: Tensor, most: int, unit: int) -> None:
    how = planned(tensor, most, unit % tensor.dim())
    seen = looked_at(tensor, how)
    assert not seen.isnan().any()
    assert how.numel == tensor.numel()
    assert min(most, tensor.numel()) <= how.sample <= seen.numel() <= max(16_384, most + 2 * how.units)
    assert how.sample % how.units == how.pairs % how.units == 0
    if tensor.numel() <= most:
        assert how.sample == tensor.numel()
        assert sorted(seen.flatten().tolist()) == sorted(tensor.flatten().tolist())


@settings(deadline=None, max_examples=150)
@given(tensors(), MOST)
def test_partners_are_the_same_unit_and_position_in_another_sample(tensor: Tensor, most: int) -> None:
    how = planned(tensor, most)
    batch = tensor.shape[0] if tensor.dim() > 1 else 1
    if batch == 1:
        assert how.pairs == 0
        return
    all_pairs = batch // 2 * (tensor.numel() // batch)
    assert how.pairs == (all_pairs if how.sample == tensor.numel() else how.sample // 2)
    samples = torch.arange(batch).reshape(-1, *[1] * (tensor.dim() - 1)).expand(tensor.shape)
    inside = torch.arange(tensor.numel() // batch).reshape(1, *tensor.shape[1:]).expand(tensor.shape)
    for what, same in ((samples, False), (inside, True)):
        memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.long)
        memory.copy_(what)
        flat = looked_at(memory, how).flatten()[-how.sample :]
        first, partner = flat[: how.pairs], flat[how.pairs : 2 * how.pairs]
        assert bool((first == partner).all()) if same else bool((first != partner).all())


@settings(deadline=None, max_examples=150)
@given(tensors(), MOST, st.integers(0, 4))
def test_a_column_of_a_plan_is_one_unit(tensor: Tensor, most: int, unit: int) -> None:
    unit_dim = unit % tensor.dim()
    how = planned(tensor, most, unit_dim)
    place = torch.arange(tensor.shape[unit_dim]).reshape(-1, *[1] * (tensor.dim() - 1 - unit_dim))
    memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.long)
    memory.copy_(place.expand(tensor.shape))
    seen = looked_at(memory, how)
    assert bool((seen == seen[:1]).all())
    assert len(seen[0].unique()) == how.units == tensor.shape[unit_dim]


@pytest.mark.parametrize(
    "shape", [(64, 64, 9, 9), (64, 256), (16, 40, 300), (2048, 1024), (16, 50_000)], ids=str
)
def test_units_are_judged_by_enough_and_by_all_parts_of_the_batch(shape: tuple[int, ...]) -> None:
    tensor, unit_dim = torch.empty(shape, device="meta"), 1 if len(shape) > 3 else len(shape) - 1
    how = planned(tensor, 4096, unit_dim)
    positions = math.prod(shape) // shape[unit_dim]
    assert how.each >= min(64, 16_384 // how.units, positions)
    assert how.units >= min(shape[unit_dim], 800)
    sample = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    dense = sample.contiguous()
    seen = looked_at(dense, how)
    assert bool((seen.sort(0).values.diff(dim=0) <= max(2, 4 * shape[0] / how.each)).all())


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda s: math.prod(s) < 400_000),
    st.sampled_from([4096, 1024]),
)
def test_a_sample_reaches_every_part_of_a_large_tensor(shape: list[int], most: int) -> None:
    tensor = surrounded(numbered(shape, list(range(len(shape)))))
    numel = tensor.numel()
    how = planned(tensor, most)
    places = looked_at(tensor, how).flatten()[-how.sample :].sort().values.numpy() - 1
    gaps = np.diff(np.concatenate([[-1], places, [numel]]))
    assert gaps.max() <= max(1, 0.05 * numel)


@settings(deadline=None, max_examples=120)
@given(tensors(), st.sampled_from([1, 16, 100, 4096]))
def test_spread_stays_inside_and_is_no_longer_than_asked(tensor: Tensor, most: int) -> None:
    seen = spread(tensor, most)
    assert not seen.isnan().any()
    assert seen.dim() == 1
    assert len(seen.unique()) == len(seen) == min(most, tensor.numel())


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda s: 4096 < math.prod(s) < 400_000),
)
@example([210, 143])
@example([7, 30, 28])
@example([64, 64, 3, 3])
def test_spread_reaches_every_part_of_a_large_tensor(shape: list[int]) -> None:
    tensor = surrounded(numbered(shape, list(range(len(shape)))))
    places = spread(tensor, 4096).sort().values.numpy() - 1
    gaps = np.diff(np.concatenate([[-1], places, [tensor.numel()]]))
    assert gaps.max() <= 0.1 * tensor.numel()


@settings(deadline=None, max_examples=120)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=4), st.integers(1, 3), st.sampled_from([4, 16, 4096]))
def test_spread_of_a_view_with_gaps(shape: list[int], step: int, most: int) -> None:
    tensor = surrounded(numbered(shape, list(range(len(shape)))))
    view = tensor[..., ::step]
    seen = spread(view, most)
    assert not seen.isnan().any()
    assert set(seen.tolist()) <= set(view.flatten().tolist())
    assert len(seen.unique()) == len(seen) == min(most, view.numel())


def test_spread_looks_at_the_same_elements_of_each_layout() -> None:
    plain = numbered([30, 20, 10], [0, 1, 2])
    turned = plain.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(spread(plain, 512), spread(turned, 512))


def test_spread_of_an_expanded_tensor() -> None:
    assert len(spread(torch.zeros(1, 4).expand(3, 4), 100)) == 12
    assert len(spread(torch.zeros(1, 4).expand(300, 4), 100)) == 100
