"""Outputs too large to be taken whole: moments within 5 % at 95 %, extremes and non-finite numbers exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

SEEDS = 60
IMAGES = (32, 32, 8, 8)

Draw = Callable[[torch.Generator], Tensor]


def normal(*shape: int) -> Draw:
    return lambda make: torch.randn(shape, generator=make)


def student(*shape: int, freedom: int = 5) -> Draw:
    """Student's t: a normal number over the root of a chi square over its degrees of freedom."""

    def draw(make: torch.Generator) -> Tensor:
        square = sum(torch.randn(shape, generator=make) ** 2 for _ in range(freedom))
        return torch.randn(shape, generator=make) / torch.as_tensor(square / freedom).sqrt()

    return draw


def sparse(*shape: int, share: float = 0.1) -> Draw:
    """Zero but for a share of normal numbers."""

    def draw(make: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=make) * (torch.rand(shape, generator=make) < share)

    return draw


def by_channel(*shape: int) -> Draw:
    """Normal with a scale that grows from 0.1 to 3 over the channels, on dimension 1."""
    scale = torch.linspace(0.1, 3, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
    return lambda make: torch.randn(shape, generator=make) * scale


def shuffled(*shape: int) -> Draw:
    """The same with the channels in a random order."""

    def draw(make: torch.Generator) -> Tensor:
        return by_channel(*shape)(make)[:, torch.randperm(shape[1], generator=make)]

    return draw


def by_sample(*shape: int) -> Draw:
    """Normal with a scale that grows from 0.1 to 3 over the batch: sorted data, a padded sequence."""
    scale = torch.linspace(0.1, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return lambda make: torch.randn(shape, generator=make) * scale


def one_loud_channel(*shape: int) -> Draw:
    """Normal with one channel in eight three times as loud: strides of powers of two would fall in step."""
    scale = torch.ones(shape[1])
    scale[::8] = 3
    return lambda make: torch.randn(shape, generator=make) * scale.reshape(1, -1, *[1] * (len(shape) - 2))


def channels_last(draw: Draw) -> Draw:
    return lambda make: draw(make).contiguous(memory_format=torch.channels_last)


CASES = {
    "normal images": normal(*IMAGES),
    "normal features": normal(200, 300),
    "normal of one sample": normal(1, 30, 20, 20),
    "normal without batch": normal(50_000),
    "heavy-tailed images": student(*IMAGES),
    "heavy-tailed features": student(128, 512),
    "heavy-tailed, channels last": channels_last(student(*IMAGES)),
    "sparse images": sparse(*IMAGES),
    "sparse features": sparse(128, 512),
    "relu images": lambda make: normal(*IMAGES)(make).relu(),
    "dead but for a tenth": lambda make: (normal(*IMAGES)(make) - 1.28).relu(),
    "channels 64": by_channel(16, 64, 16, 16),
    "channels 64, last": channels_last(by_channel(16, 64, 16, 16)),
    "channels 64, shuffled": shuffled(16, 64, 16, 16),
    "channels 30": by_channel(7, 30, 14, 14),
    "channels 30, last": channels_last(by_channel(7, 30, 14, 14)),
    "channels 30, one sample": by_channel(1, 30, 14, 14),
    "channels 60, four samples": by_channel(4, 60, 30, 30),
    "channels 64, three samples": by_channel(3, 64, 17, 17),
    "channels 210": by_channel(8, 210, 11, 13),
    "channels 3": by_channel(9, 3, 32, 32),
    "features 512": by_channel(64, 512),
    "features 300": by_channel(64, 300),
    "features 2310": by_channel(30, 2310),
    "features 1000, three samples": by_channel(3, 2000),
    "loud channel of 64": one_loud_channel(16, 64, 16, 16),
    "loud channel of 64, last": channels_last(one_loud_channel(16, 64, 16, 16)),
    "loud feature of 512": one_loud_channel(128, 512),
    "loud feature of 504": one_loud_channel(129, 504),
    "sequence": lambda make: by_channel(16, 48, 65)(make).transpose(1, 2),
    "sequence, time first": lambda make: by_channel(33, 40, 24)(make).transpose(0, 1),
    "images around 10": lambda make: normal(*IMAGES)(make) + 10,
    "features around -300": lambda make: normal(128, 512)(make) - 300,
    "channels each around its own": lambda make: normal(*IMAGES)(make) + torch.arange(32)[:, None, None],
    "half precision": lambda make: student(*IMAGES)(make).half(),
    "brain floats, channels last": channels_last(lambda make: normal(*IMAGES)(make).bfloat16()),
    "double precision": lambda make: normal(*IMAGES)(make).double(),
    "complex": lambda make: torch.view_as_complex(normal(64, 200, 2)(make)),
    "not dense": lambda make: normal(64, 400)(make)[:, ::2],
    "samples 64": by_sample(64, 32, 6, 6),
    "samples 33": by_sample(33, 257),
    "samples 9": by_sample(9, 16, 16, 16),
}


@pytest.mark.parametrize("case", CASES)
def test_the_moments_are_right_within_five_percent_at_95_percent(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], case: str
) -> None:
    layer = emit()
    watched = watching(layer)
    std, rms, mean = [], [], []
    for seed in range(SEEDS):
        layer.output = CASES[case](torch.Generator().manual_seed(seed))
        assert layer.output.numel() > 4096
        frame = watched.see()
        parts = torch.view_as_real(layer.output) if layer.output.is_complex() else layer.output
        whole = parts.double()
        std.append(watched.read(frame, "act.std") / whole.std(correction=0) - 1)
        rms.append(watched.read(frame, "act.rms") / whole.square().mean().sqrt() - 1)
        mean.append((watched.read(frame, "act.mean") - whole.mean()) / whole.std())
    assert watched.faults == []
    for errors in (std, rms):
        assert np.quantile(np.abs(errors), 0.95) <= 0.05
        assert abs(np.mean(errors)) <= 0.015, "a bias"
    assert np.quantile(np.abs(mean), 0.95) <= 0.05
    assert abs(np.mean(mean)) <= 0.015


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25, 1e33])
def test_large_outputs_whose_squares_leave_single_precision(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], scale: float
) -> None:
    output = student(64, 300)(torch.Generator().manual_seed(0)) * scale
    watched = watching(emit(output))
    frame = watched.see()
    whole = output.double()
    assert watched.read(frame, "act.std") == pytest.approx(whole.std(correction=0).item(), rel=0.05)
    assert watched.read(frame, "act.rms") == pytest.approx(whole.square().mean().sqrt().item(), rel=0.05)
    assert watched.read(frame, "act.absmax") == pytest.approx(output.abs().max().item())
    assert watched.read(frame, "act.nonfinite") == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_that_the_sample_does_not_hold_leaves_the_moments_alone_or_not_finite(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], bad: float
) -> None:
    output = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    layer = emit(output)
    watched = watching(layer)
    for place in range(0, output.numel(), 997):
        layer.output = output.clone()
        layer.output.view(-1)[place] = bad
        frame = watched.see()
        std = watched.read(frame, "act.std")
        assert not np.isfinite(std) or std == pytest.approx(1, rel=0.1)
        assert watched.read(frame, "act.nonfinite") == 1


@pytest.mark.parametrize("case", ["normal images", "relu images", "sparse features", "channels 64, last"])
def test_shares_and_histogram_are_near_those_of_the_whole(
    watching: Callable[..., Any],
    emit: Callable[..., nn.Module],
    defined: Callable[..., dict[str, Any]],
    histogram: Callable[[Tensor], np.ndarray],
    case: str,
) -> None:
    output = CASES[case](torch.Generator().manual_seed(0))
    watched = watching(emit(output))
    frame = watched.see()
    for signal in ("act.near_zero", "act.tiny"):
        assert watched.read(frame, signal) == pytest.approx(defined(output)[signal].expected, abs=0.03)
    assert frame.hist is not None
    counts, whole = frame.hist[0], histogram(output)
    assert 4096 <= counts.sum() <= output.numel()
    np.testing.assert_allclose(counts / counts.sum(), whole / whole.sum(), atol=0.03)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 8 * 24 * 7 * 7 - 1),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 1e4, -1e4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    layout=st.sampled_from(["plain", "channels_last", "transposed", "sliced"]),
)
def test_a_single_outlier_is_never_missed(
    *,
    watching: Callable[..., Any],
    emit: Callable[..., nn.Module],
    place: int,
    value: float,
    dtype: torch.dtype,
    layout: str,
) -> None:
    output = torch.randn(8, 24, 7, 7, generator=torch.Generator().manual_seed(place)).to(dtype)
    if layout == "sliced":
        output = output.repeat_interleave(2, 3)[..., ::2]
    elif layout == "channels_last":
        output = output.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        output = output.transpose(0, 1).contiguous().transpose(0, 1)
    output[np.unravel_index(place, output.shape)] = value
    watched = watching(emit(output))
    frame = watched.see()
    assert watched.faults == []
    assert watched.read(frame, "act.nonfinite") == (not np.isfinite(value))
    largest = watched.read(frame, "act.absmax")
    assert largest == pytest.approx(output.abs().max().item(), rel=1e-6, nan_ok=True)


def test_all_outliers_are_counted(watching: Callable[..., Any], emit: Callable[..., nn.Module]) -> None:
    output = torch.randn(64, 500)
    output[torch.rand(64, 500) < 0.01] = np.nan
    watched = watching(emit(output))
    assert watched.read(watched.see(), "act.nonfinite") == output.isnan().sum().item()


def kill(layer: nn.Linear | nn.Conv2d, units: list[int]) -> None:
    with torch.no_grad():
        layer.weight[units], layer.bias[units] = 0, 0


@pytest.mark.parametrize(
    "dead", [[], [0], [31], [3, 4, 5, 20], list(range(0, 32, 2)), list(range(32))], ids=len
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dead_channels_of_a_convolution(
    watching: Callable[..., Any], dead: list[int], memory: torch.memory_format
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()).to(memory_format=memory)
    kill(model[0], dead)
    watched = watching(model)
    frame = watched.see(torch.randn(16, 3, 12, 12).to(memory_format=memory))
    assert watched.read(frame, "act.dead", "0") == pytest.approx(len(dead) / 32)
    assert watched.read(frame, "act.dead", "1") == pytest.approx(len(dead) / 32)
    if dead:
        assert watched.read(frame, "act.dormant", "0") >= len(dead) / 32 - 1e-6


@pytest.mark.parametrize("dead", [[], [0], [299], list(range(1, 300, 2)), list(range(100))], ids=len)
@pytest.mark.parametrize("sequence", [False, True])
def test_dead_units_of_a_linear_layer(watching: Callable[..., Any], dead: list[int], sequence: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 300), nn.GELU())
    kill(model[0], dead)
    watched = watching(model)
    frame = watched.see(torch.randn(16, 9, 8) if sequence else torch.randn(40, 8))
    assert watched.read(frame, "act.dead", "0") == pytest.approx(len(dead) / 300)
    assert watched.read(frame, "act.dead", "1") == pytest.approx(len(dead) / 300)


@pytest.mark.parametrize("units", [1025, 2048, 3000, 3072, 4096, 10_000])
@pytest.mark.parametrize("every", [2, 3, 4])
def test_dead_units_of_a_wide_layer_are_not_fallen_in_step_with(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], units: int, every: int
) -> None:
    output = torch.randn(16, units)
    output[:, ::every] = 0
    watched = watching(emit(output))
    assert watched.read(watched.see(), "act.dead") == pytest.approx(1 / every, abs=0.02)


@pytest.mark.parametrize("shape", [(64, 64, 8, 8), (64, 256)], ids=str)
def test_units_that_are_zero_most_of_the_time_are_not_dead(
    watching: Callable[..., Any],
    emit: Callable[..., nn.Module],
    defined: Callable[..., dict[str, Any]],
    shape: tuple[int, ...],
) -> None:
    output = sparse(*shape, share=0.1)(torch.Generator().manual_seed(0))
    expected = defined(output, 1)["act.dead"].expected
    assert expected < 0.01
    watched = watching(emit(output, channels=len(shape) > 2))
    assert watched.read(watched.see(), "act.dead") == pytest.approx(expected, abs=0.01)


def test_a_unit_that_fires_in_one_place_only_is_alive_where_the_output_is_taken_whole(
    watching: Callable[..., Any], emit: Callable[..., nn.Module]
) -> None:
    output = torch.zeros(8, 8, 8, 8)
    for unit in range(8):
        output[unit, unit, unit, 7 - unit] = 1
    watched = watching(emit(output, channels=True))
    assert watched.read(watched.see(), "act.dead") == 0
