"""act.variation: what the units make of another sample, over the layer's rms; near 0 in a collapsed network.

By its definition it is the spread of each unit (at each position) over the samples of the batch. It is
estimated from pairs of samples half a batch apart, of which half the mean square difference is, for
independent samples, the mean variance of the units. So both agree only up to the noise of the estimate: with
n pairs in all, about 1 / sqrt(n) of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

Make = Callable[..., nn.Module]


def definition(output: Tensor) -> float:
    """Root mean square over units and positions of the spread over the samples, over the rms."""
    x = output.detach()
    x = torch.view_as_real(x) if x.is_complex() else x
    x = x.double()
    return float(x.var(0).mean().sqrt() / x.square().mean().sqrt())


def structured(*shape: int, noise: float, seed: int = 0) -> Tensor:
    """A fixed pattern over units and positions, and noise of a scale of each unit's own."""
    make = torch.Generator().manual_seed(seed)
    pattern = torch.randn(1, *shape[1:], generator=make)
    scale = torch.rand(1, shape[1], *[1] * (len(shape) - 2), generator=make) + 0.5
    return pattern + noise * scale * torch.randn(shape, generator=make)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(
    "shape", [(64, 60), (65, 63), (2, 2000), (64, 300), (301, 64), (16, 32, 8, 8), (17, 4, 30, 30)], ids=str
)
def test_it_is_the_spread_over_the_samples(
    watching: Callable[..., Any], emit: Make, shape: tuple[int, ...], noise: float
) -> None:
    output = structured(*shape, noise=noise)
    watched = watching(emit(output, channels=len(shape) > 2))
    assert watched.read(watched.see(), "act.variation") == pytest.approx(definition(output), rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x.to(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="batch second"),
        pytest.param(lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), id="batch last"),
        pytest.param(lambda x: x[:, :, ::2], id="sliced"),
        pytest.param(lambda x: x[::2], id="every second sample"),
        pytest.param(lambda x: x.double(), id="double"),
        pytest.param(lambda x: x.to(torch.bfloat16), id="bfloat16"),
        pytest.param(lambda x: torch.complex(x, x.flip(0)), id="complex"),
    ],
)
@pytest.mark.parametrize("shape", [(16, 8, 4, 6), (32, 16, 10, 10)], ids=["whole", "sampled"])
def test_it_does_not_depend_on_the_layout_in_memory(
    watching: Callable[..., Any], emit: Make, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]
) -> None:
    output = change(structured(*shape, noise=0.5))
    watched = watching(emit(output, channels=True))
    assert watched.read(watched.see(), "act.variation") == pytest.approx(definition(output), rel=0.1)


def collapsed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A layer that has lost its weights and speaks by its biases alone."""
    nn.init.zeros_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def test_a_collapsed_network_says_the_same_whatever_it_is_shown(watching: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *[collapsed(nn.Conv2d(3, 16, 3, padding=1)), nn.LeakyReLU(), nn.Conv2d(16, 32, 3, padding=1)],
        *[nn.LeakyReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 10)],
    )
    watched = watching(model)
    frame = watched.see(torch.randn(32, 3, 16, 16))
    for name in watched.names():
        assert watched.read(frame, "act.variation", name) < 1e-5, name
        assert watched.read(frame, "act.std", name) > 0.01, name
        assert watched.read(frame, "act.dead", name) == 0, name
    assert watched.read(frame, "act.near_zero", "0") < 0.5


@pytest.mark.parametrize("size", [8, 32])
def test_a_fixed_pattern_over_positions_is_no_variation(
    watching: Callable[..., Any], emit: Make, size: int
) -> None:
    output = torch.randn(1, 8, size, size).repeat(16, 1, 1, 1)
    watched = watching(emit(output, channels=True))
    frame = watched.see()
    assert watched.read(frame, "act.variation") == 0
    assert watched.read(frame, "act.std") == pytest.approx(1, rel=0.15)


def test_a_healthy_network_varies_much(watching: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.Tanh())
    watched = watching(model)
    frame = watched.see(torch.randn(32, 3, 8, 8))
    assert all(watched.read(frame, "act.variation", name) > 0.3 for name in watched.names())


def test_attention_with_the_batch_first(watching: Callable[..., Any]) -> None:
    """Its output is a transposed view: time comes first in memory."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            nn.init.normal_(self.attention.out_proj.bias)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.attention(x, x, x, need_weights=False)[0]
            return self.seen

    watched = watching(Model(), choice="attention")
    for length in (5, 40):
        frame = watched.see(torch.randn(32, length, 16))
        expected = definition(watched.model.seen)
        assert watched.read(frame, "act.variation") == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("shape", [(1, 8), (1, 70, 70), (1, 3, 4, 4), (12,), (5000,), ()], ids=str)
def test_there_is_none_of_a_single_sample(
    watching: Callable[..., Any], emit: Make, shape: tuple[int, ...]
) -> None:
    watched = watching(emit(torch.randn(shape) + 1))
    frame = watched.see()
    assert watched.read(frame, "act.variation") is None
    assert watched.read(frame, "act.std") is not None


def test_a_layer_of_zeros_does_not_vary(watching: Callable[..., Any], emit: Make) -> None:
    watched = watching(emit(torch.zeros(8, 8)))
    assert watched.read(watched.see(), "act.variation") in (None, 0)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_it_is_free_of_scale(watching: Callable[..., Any], emit: Make, scale: float) -> None:
    output = structured(64, 60, noise=0.5)
    watched = watching(emit(output * scale))
    assert watched.read(watched.see(), "act.variation") == pytest.approx(definition(output), rel=0.1)


def test_it_is_not_said_to_be_small_where_the_output_is_not_finite(
    watching: Callable[..., Any], emit: Make
) -> None:
    output = torch.randn(8, 8)
    output[3, 3] = np.nan
    watched = watching(emit(output))
    variation = watched.read(watched.see(), "act.variation")
    assert variation is None or np.isnan(variation)
