"""A ReLU's numbers come from the sample of its input, where that was measured just before: they are the same
as those of a module that is looked at itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

Watch = Callable[..., Any]


class Rectify(nn.Module):
    """A ReLU by another class, which is measured like any output."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)


class RectifyActivation(Rectify):
    """Named so that it is watched."""


def net(relu: nn.Module, *, images: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 40, 3), relu, nn.Conv2d(40, 5, 3)] if images else [nn.Linear(6, 300), relu]
    return nn.Sequential(*layers)


def given(batch: int, *, images: bool) -> Tensor:
    make = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *((3, 9, 9) if images else (6,)), generator=make)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("batches", [[2], [64], [3, 40, 1]], ids=str)
def test_it_is_as_if_the_output_were_looked_at(
    watching: Watch, *, inplace: bool, images: bool, batches: list[int]
) -> None:
    one = watching(net(nn.ReLU(inplace=inplace), images=images))
    other = watching(net(RectifyActivation(), images=images))
    for model in (one.model, other.model):
        with torch.no_grad():
            model[0].weight[:7] = model[0].bias[:7] = 0
            model[0].bias[7:12] = -100
    for batch in batches:
        frames = [watched.see(given(batch, images=images)) for watched in (one, other)]
        found, expected = (w.all(f, "act", "1") for w, f in zip((one, other), frames, strict=True))
        assert found == pytest.approx(expected, rel=0.05, abs=1e-3)
        for exact in ("act.absmax", "act.nonfinite", "act.dead"):
            assert found[exact] == expected[exact]
        hist, hist_expected = (frame.hist[1] / frame.hist[1].sum() for frame in frames)
        np.testing.assert_allclose(hist, hist_expected, atol=0.02)
    assert one.faults == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_where_the_input_is_not_finite_the_output_is_looked_at(watching: Watch, bad: float) -> None:
    watched = watching(model := nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with torch.no_grad():
        model[0].bias[1] = bad
    frame = watched.see(torch.ones(5, 4))
    assert watched.read(frame, "act.nonfinite", "0") == 5
    assert watched.read(frame, "act.nonfinite", "1") == (0 if bad == -np.inf else 5)


def test_an_input_that_was_written_to_is_not_taken_for_the_one_measured(watching: Watch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.layer(x).mul_(100))

    watched = watching(Model())
    frame = watched.see(x := torch.randn(5, 4))
    assert watched.read(frame, "act.absmax", "relu") == watched.model(x).max().item()


def test_a_layer_and_its_relu_that_are_called_in_turn(watching: Watch) -> None:
    """The extremes of all calls, the moments of the last, and a unit is dead that is silent in all."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = nn.Linear(1, 3, bias=False), nn.ReLU()

        def forward(self, parts: list[Tensor]) -> Tensor:
            return torch.cat([self.relu(self.layer(part)) for part in parts])

    watched = watching(model := Model())
    with torch.no_grad():
        model.layer.weight[:, 0] = torch.tensor([1.0, -1.0, 0.0])
    for _ in range(2):
        frame = watched.see([torch.full((4, 1), 50.0), torch.full((4, 1), -2.0), torch.full((4, 1), 3.0)])
        assert watched.read(frame, "act.absmax", "relu") == 50
        assert watched.read(frame, "act.mean", "relu") == pytest.approx(1)
        assert watched.read(frame, "act.dead", "relu") == pytest.approx(1 / 3)
        assert watched.read(frame, "act.dead", "layer") == pytest.approx(1 / 3)
    frame = watched.see([torch.full((4, 1), 50.0)])
    assert watched.read(frame, "act.dead", "relu") == pytest.approx(2 / 3)
