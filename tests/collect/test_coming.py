"""A frame that is begun holds what a frame made at once would, whatever passes are made before it arrives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepguard.collect.coming import any_bad
from stepguard.signals import Frame

Watch = Callable[..., Any]


def a_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 3))


def same(one: Frame, other: Frame) -> None:
    assert one.scalars == pytest.approx(other.scalars, nan_ok=True)
    assert one.vectors.keys() == other.vectors.keys()
    for signal, vector in one.vectors.items():
        expected = other.vectors[signal]
        np.testing.assert_array_equal(vector.known, expected.known, signal)
        # That tails are light, so that a sample is enough, is known one step later as well.
        near = 0.03 if signal in ("act.std", "act.rms") else 1e-5
        np.testing.assert_allclose(vector.values, expected.values, rtol=near, err_msg=signal)
    assert (one.hist is None) == (other.hist is None)
    if one.hist is not None:
        np.testing.assert_array_equal(one.hist, other.hist)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("sizes", [(16, 16, 16, 16), (16, 7, 200, 16, 3), (200, 16, 200, 1)], ids=str)
def test_it_is_the_frame_made_at_once(watching: Watch, sizes: tuple[int, ...], every: int) -> None:
    model = a_net()
    at_once, late = watching(copy.deepcopy(model)), watching(model)
    batches = [torch.randn(size, 8) for size in sizes]
    expected: list[Frame] = []
    for step, batch in enumerate(batches):
        at_once.collector.active = step % every == 0
        expected.append(at_once.train(batch, sampled=step % every == 0))
    coming = None
    for step, batch in enumerate([*batches, torch.randn(2, 8)]):
        sampled = late.collector.active = step % every == 0
        loss = late.backward(batch)
        if coming is not None:
            frame, bad = coming.arrive()
            same(frame, expected[step - 1])
            assert not bad
        if sampled:
            late.collector.remember(step)
        coming = late.collector.begin(step, loss, sampled=sampled)
        assert coming.bad == 0.0
        late.optimizer.step()
    assert late.faults == at_once.faults == []


def test_of_a_bad_step_that_was_not_measured_the_forward_pass_is_made_again(watching: Watch) -> None:
    watched = watching(a_net())
    for step, sampled in enumerate((True, False, False)):
        watched.collector.active = sampled
        loss = watched.backward(torch.full((5, 8), math.nan if step == 1 else 1.0))
        coming = watched.collector.begin(step, loss, sampled=sampled)
        watched.collector.active = step == 1
        watched.backward(torch.ones(5, 8))  # the next forward pass, of a step that is measured after step 1
        frame, bad = coming.arrive()
        assert bad == bool(coming.bad) == (step == 1)
        assert ("act.nonfinite" in frame.vectors) == (step < 2)
    assert watched.faults == []
    names = watched.names()
    watched.collector.active = False
    loss = watched.backward(torch.full((5, 8), math.nan))
    frame, _ = watched.collector.begin(3, loss, sampled=False).arrive()
    assert [watched.read(frame, "grad.nonfinite", name) for name in names[::2]] == [2, 2, 2]
    assert watched.read(frame, "act.nonfinite", names[0]) == 5 * 300


def test_a_gradient_without_any_entry_is_not_bad(watching: Watch) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    watched = watching(model)
    loss = watched.backward(torch.empty(0, dtype=torch.long), loss=torch.sum)
    frame, bad = watched.collector.begin(0, loss, sampled=False).arrive()
    assert not bad
    assert watched.read(frame, "grad.nonfinite", "0") == 0


@pytest.mark.parametrize(
    ("numbers", "bad"),
    [
        ([torch.ones(3), torch.tensor(2.0)], 0.0),
        ([torch.ones(3), torch.tensor(math.inf)], 1.0),
        ([torch.tensor([0.0, math.nan])], 1.0),
        ([torch.tensor(1e300, dtype=torch.float64)], 0.0),
        ([torch.tensor(3e4, dtype=torch.float16), torch.tensor(1e38)], 0.0),
        ([], 0.0),
    ],
    ids=str,
)
def test_any_bad(numbers: list[Tensor], bad: float) -> None:
    found = any_bad(numbers)
    assert (found.item(), found.dtype, found.shape) == (bad, torch.float32, ())
