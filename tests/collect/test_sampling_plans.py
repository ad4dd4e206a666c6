"""Where the sampler looks: inside the tensor, at all places once where it is taken whole, evenly
elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepguard.collect.sampling import Plan, plan, spread

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


def looked_at(tensor: Tensor, most: int) -> tuple[Plan, Tensor, Tensor]:
    """A plan, the elements in its sample, and their own places in the tensor, all flat."""
    how = plan(tuple(tensor.shape), tensor.stride(), tensor.dim() - 1, most)
    if how is None:
        tensor = tensor.contiguous()
        how = plan(tuple(tensor.shape), tensor.stride(), tensor.dim() - 1, most)
    assert how is not None
    memory = tensor.as_strided((how.numel,), (1,), tensor.storage_offset())
    return how, tensor, memory[torch.from_numpy(how.places)]


@settings(deadline=None, max_examples=300)
@given(tensors(), MOST)
def test_a_plan_stays_inside_and_is_no_longer_than_asked(tensor: Tensor, most: int) -> None:
    how, _, seen = looked_at(tensor, most)
    assert how.places.min() >= 0
    assert how.places.max() < tensor.numel()
    assert not seen.isnan().any()
    assert len(seen) == min(most, tensor.numel())
    if tensor.numel() <= most:
        assert len(seen.unique()) == len(seen)


@settings(deadline=None, max_examples=300)
@given(tensors(), MOST)
def test_partners_are_the_same_unit_and_position_in_another_sample(tensor: Tensor, most: int) -> None:
    how, laid_out, _ = looked_at(tensor, most)
    batch = tensor.shape[0] if tensor.dim() > 1 else 1
    if batch == 1:
        assert how.pairs == 0
        return
    assert how.pairs == (most // 2 if tensor.numel() > most else batch // 2 * (tensor.numel() // batch))
    samples = torch.arange(batch).reshape(-1, *[1] * (tensor.dim() - 1)).expand(tensor.shape)
    inside = torch.arange(tensor.numel() // batch).reshape(1, *tensor.shape[1:]).expand(tensor.shape)
    for what, same in ((samples, False), (inside, True)):
        memory = torch.empty_strided(tensor.shape, laid_out.stride(), dtype=torch.long)
        memory.copy_(what)
        flat = memory.as_strided((how.numel,), (1,))[torch.from_numpy(how.places)]
        first, partner = flat[: how.pairs], flat[how.pairs : 2 * how.pairs]
        assert bool((first == partner).all()) if same else bool((first != partner).all())


@settings(deadline=None, max_examples=300)
@given(tensors(), MOST, st.integers(0, 4))
def test_units_stay_inside_and_are_all_judged_by_as_much(tensor: Tensor, most: int, unit: int) -> None:
    unit_dim = unit % tensor.dim()
    how = plan(tuple(tensor.shape), tensor.stride(), unit_dim, most)
    if how is None:
        return
    view = how.units.of(tensor)
    assert not view.isnan().any()
    assert view.shape[unit_dim] == tensor.shape[unit_dim] == how.judged
    assert sorted((*how.others, unit_dim)) == list(range(tensor.dim()))
    if tensor.numel() <= 4096:
        assert view.shape == tensor.shape


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda s: math.prod(s) < 400_000),
    st.sampled_from([4096, 1024]),
)
def test_a_sample_reaches_every_part_of_a_large_tensor(shape: list[int], most: int) -> None:
    tensor = surrounded(numbered(shape, list(range(len(shape)))))
    numel = tensor.numel()
    places = looked_at(tensor, most)[2].sort().values.numpy() - 1
    gaps = np.diff(np.concatenate([[-1], places, [numel]]))
    assert gaps.max() <= max(1, 0.02 * numel)


@settings(deadline=None, max_examples=200)
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


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=4), st.integers(1, 3), st.sampled_from([4, 16, 4096]))
def test_spread_of_a_view_with_gaps(shape: list[int], step: int, most: int) -> None:
    tensor = surrounded(numbered(shape, list(range(len(shape)))))
    view = tensor[..., ::step]
    seen = spread(view, most)
    assert not seen.isnan().any()
    assert set(seen.tolist()) <= set(view.flatten().tolist())
    assert len(seen.unique()) == len(seen) == min(most, view.numel())


def test_an_expanded_tensor_has_to_be_made_contiguous_first() -> None:
    tensor = torch.zeros(1, 4).expand(3, 4)
    assert plan(tuple(tensor.shape), tensor.stride(), 1) is None
    assert len(spread(tensor, 100)) == 12
