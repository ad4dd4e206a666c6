"""Every signal of an output that is small enough to be taken whole, against numpy on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

WHOLE = 4096
FORMATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of mean 0.3, some of them zero and some tiny, and one dead and one dormant unit a side."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=make, dtype=torch.float64) * 1.5 + 0.3
    x *= torch.rand(shape, generator=make) > 0.1
    x[torch.rand(shape, generator=make) < 0.1] *= 1e-3
    x[..., :1] *= 0
    x[..., 1:2] *= 1e-3
    if dtype.is_complex:
        x = torch.complex(x, x.flip(0))
    return x.to(dtype)


@pytest.fixture
def check(
    watching: Callable[..., Any],
    emit: Callable[..., nn.Module],
    defined: Callable[..., dict[str, Any]],
    histogram: Callable[[Tensor], np.ndarray],
) -> Callable[..., None]:
    """Hold what is measured of an output to its definition."""

    def hold(output: Tensor, *, channels: bool = False) -> None:
        watched = watching(emit(output, channels=channels))
        frame = watched.see()
        assert watched.faults == []
        assert watched.outputs(frame) == defined(output, 1 if channels else -1)
        assert frame.hist is not None
        np.testing.assert_array_equal(frame.hist[0], histogram(output))

    return hold


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        *[(1,), (2,), (7,), (63,), (64,), (65,), (1024,)],
        *[(1, 1), (1, 40), (2, 3), (3, 21), (5, 13), (64, 32), (63, 32)],
        *[(5, 7, 11), (3, 8, 16), (3, 31, 22), (1, 9, 9), (2, 3, 4, 5), (7, 4, 3, 3), (3, 2, 4, 4, 4)],
    ],
    ids=str,
)
def test_each_shape_in_each_number_format(
    check: Callable[..., None], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    check(random(*shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(6, 5), (1, 5, 9), (9, 5, 11), (5, 8, 6, 6), (3, 5, 2, 3, 4)], ids=str)
def test_units_of_a_convolution_lie_on_dimension_one(
    check: Callable[..., None], shape: tuple[int, ...]
) -> None:
    output = random(*shape)
    output[:, 2] = 0
    output[:, 3] *= 1e-3
    check(output, channels=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda s: np.prod(s) <= WHOLE // 2),
    dtype=st.sampled_from(FORMATS),
    seed=st.integers(0, 1000),
    channels=st.booleans(),
    data=st.data(),
)
def test_any_shape_and_any_order_in_memory(
    *,
    check: Callable[..., None],
    shape: list[int],
    dtype: torch.dtype,
    seed: int,
    channels: bool,
    data: st.DataObject,
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    output = random(*shape, seed=seed, dtype=dtype).permute(order)
    check(output, channels=channels and output.dim() > 1)


@pytest.mark.parametrize("shape", [(1025,), (4096,), (2, 1500), (3, 1365), (1, 2048)], ids=str)
def test_more_than_a_thousand_units(check: Callable[..., None], shape: tuple[int, ...]) -> None:
    output = random(*shape)
    output[..., ::2] = 0
    output[..., 1:700:2] *= 1e-3
    check(output)


def batch() -> Tensor:
    return random(6, 8, 4, 5)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(batch().to(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(random(2, 3, 4, 2, 5).to(memory_format=torch.channels_last_3d), id="channels_last_3d"),
        pytest.param(batch().transpose(0, 1), id="transposed batch"),
        pytest.param(batch().transpose(2, 3), id="transposed space"),
        pytest.param(batch()[:, ::2], id="every second channel"),
        pytest.param(batch()[1:, 1:, 1:, 1:], id="corner"),
        pytest.param(batch()[::2], id="every second sample"),
        pytest.param(batch()[:1].expand(5, 8, 4, 5), id="expanded batch"),
        pytest.param(batch()[..., :1].expand(6, 8, 4, 5), id="expanded space"),
        pytest.param(torch.arange(12.0).unfold(0, 4, 1).reshape(1, 9, 2, 2), id="overlapping"),
        pytest.param(torch.arange(12.0).unfold(0, 4, 1), id="overlapping windows"),
        pytest.param(batch().flatten(1)[:, 7:71], id="columns"),
        pytest.param(random(6, 8, dtype=torch.complex64).conj(), id="conjugate"),
        pytest.param(random(6, 8, dtype=torch.complex64).conj().imag, id="negative view"),
        pytest.param(random(6, 8, dtype=torch.complex64).real, id="real part"),
        pytest.param(random(6, 8, dtype=torch.complex64).t(), id="transposed complex"),
    ],
)
@pytest.mark.parametrize("channels", [False, True], ids=["last", "channels"])
def test_outputs_that_are_not_contiguous(check: Callable[..., None], output: Tensor, channels: bool) -> None:
    check(output, channels=channels)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_an_output_without_dimension(check: Callable[..., None], dtype: torch.dtype) -> None:
    check(torch.tensor(-2.5, dtype=dtype))


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e15, 1e25, 1e33])
def test_finite_outputs_whose_squares_leave_single_precision(
    check: Callable[..., None], scale: float
) -> None:
    output = random(8, 8)
    check(output / output.abs().max() * scale)


@pytest.mark.parametrize("scale", [1e-60, 1e-40, 1e30, 1e100])
def test_double_precision(check: Callable[..., None], scale: float) -> None:
    check(random(8, 8, dtype=torch.float64) * scale)


def test_numbers_beyond_single_precision_are_large_and_not_non_finite(
    watching: Callable[..., Any], emit: Callable[..., nn.Module]
) -> None:
    watched = watching(emit(random(8, 8, dtype=torch.float64) * 1e100))
    found = watched.outputs(watched.see())
    assert found["act.absmax"] == np.inf
    assert found["act.nonfinite"] == 0
    assert found["act.dead"] == pytest.approx(1 / 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_largest_number_of_a_format_is_finite(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], dtype: torch.dtype
) -> None:
    largest = torch.finfo(dtype).max
    watched = watching(emit(torch.tensor([[1.0, -largest], [0.5, 2.0]], dtype=dtype)))
    found = watched.outputs(watched.see())
    assert found["act.absmax"] == largest
    assert found["act.nonfinite"] == 0


@pytest.mark.parametrize("dtype", FORMATS[:4], ids=str)
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("channels", [False, True])
def test_a_unit_that_seldom_speaks_is_dormant_by_its_mean(
    *,
    watching: Callable[..., Any],
    emit: Callable[..., nn.Module],
    dtype: torch.dtype,
    calls: int,
    channels: bool,
) -> None:
    """However loud it is then: its mean is 1/128, and 0.025 of the mean of all is 0.015."""
    output = torch.ones(128, 5)
    output[:, 2] = 0
    output[7, 2] = -1
    output[:, 3] = 0.03
    output = output.to(dtype)
    output = output.reshape(8, 4, 4, 5).permute(0, 3, 1, 2).contiguous() if channels else output
    layer = emit(output * 0, channels=channels)
    watched = watching(layer)
    for _ in range(calls - 1):
        layer()
    layer.output = output
    frame = watched.see()
    assert watched.read(frame, "act.dormant") == pytest.approx(1 / 5)
    assert watched.read(frame, "act.dead") == 0


@pytest.mark.parametrize("value", [0.0, -0.0, 3.0])
def test_a_constant_output(check: Callable[..., None], value: float) -> None:
    check(torch.full((4, 6), value))


def test_the_edges_of_the_histogram(check: Callable[..., None]) -> None:
    check(torch.tensor([[0.0, 1.0, -2.0, 3.0, 9.0, -9.999], [10.0, -10.0, 10.001, 1e9, 0.3, -0.5]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_non_finite_numbers_are_counted(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], bad: float, dtype: torch.dtype
) -> None:
    output = random(5, 6).to(dtype)
    output[1, 2] = output[4, 5] = bad
    watched = watching(emit(output))
    frame = watched.see()
    found = watched.outputs(frame)
    assert found["act.nonfinite"] == 2
    assert np.isnan(found["act.absmax"]) if np.isnan(bad) else found["act.absmax"] == np.inf
    assert not np.isfinite(found["act.std"])
    assert frame.hist is not None
    assert frame.hist[0].sum() == 30
    assert frame.hist[0, -1] >= 2


def test_an_output_of_nothing_but_nan(watching: Callable[..., Any], emit: Callable[..., nn.Module]) -> None:
    watched = watching(emit(torch.full((3, 4), np.nan)))
    found = watched.outputs(watched.see())
    assert found["act.nonfinite"] == 12
    assert all(np.isnan(found[f"act.{what}"]) for what in ("mean", "std", "rms", "absmax"))


def test_complex_numbers_count_each_part(
    watching: Callable[..., Any], emit: Callable[..., nn.Module]
) -> None:
    output = random(5, 6, dtype=torch.complex64)
    output[2, 2] = complex(np.nan, np.inf)
    output[3, 3] = complex(1, -np.inf)
    watched = watching(emit(output))
    assert watched.read(watched.see(), "act.nonfinite") == 3


def test_neighbours_in_one_model_do_not_touch(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], defined: Callable[..., dict[str, Any]]
) -> None:
    outputs = [random(n, 2 + n % 5, seed=n) for n in range(1, 40)]
    watched = watching(nn.Sequential(*(emit(output) for output in outputs)))
    for _ in range(2):
        frame = watched.see(torch.zeros(1))
        for layer, output in zip(watched.layers, outputs, strict=True):
            assert watched.outputs(frame, layer.name) == defined(output)


def test_shapes_that_change_from_step_to_step(
    watching: Callable[..., Any], emit: Callable[..., nn.Module], defined: Callable[..., dict[str, Any]]
) -> None:
    layer, other = emit(), emit(random(9, 9, seed=5))
    watched = watching(nn.Sequential(layer, other))
    shapes = [(8, 6), (5, 6), (1, 6), (8, 6), (40, 6), (600, 6), (5, 6), (4, 3), (3, 21), (7,), (8, 6)]
    for step, shape in enumerate(shapes):
        layer.output = random(*shape, seed=step)
        frame = watched.see(torch.zeros(1))
        assert watched.outputs(frame, "0") == defined(layer.output)
        assert watched.outputs(frame, "1") == defined(other.output)


def test_the_input_of_the_model(watching: Callable[..., Any]) -> None:
    x = random(6, 4)
    x[1, 1] = 50
    watched = watching(nn.Linear(4, 2))
    frame = watched.see(x)
    assert frame.scalars["input.mean"] == pytest.approx(x.mean().item(), rel=1e-4)
    assert frame.scalars["input.std"] == pytest.approx(x.std(correction=0).item(), rel=1e-4)
    assert frame.scalars["input.absmax"] == 50
    assert frame.scalars["input.nonfinite"] == 0
    x[0, 0], x[2, 3] = np.nan, np.inf
    assert watched.see(x).scalars["input.nonfinite"] == 2


def test_the_first_floating_input_counts_by_place_or_by_name(watching: Callable[..., Any]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 1)

        def forward(self, tokens: Tensor, *, weights: Tensor | None = None) -> Tensor:
            hidden = self.embed(tokens)
            return self.head(hidden if weights is None else hidden * weights)

    watched = watching(Model())
    tokens = torch.arange(6).reshape(2, 3)
    assert not [name for name in watched.see(tokens).scalars if name.startswith("input.")]
    watched.model(tokens, weights=torch.full((2, 3, 1), 7.0))
    assert watched.frame().scalars["input.absmax"] == 7


@pytest.mark.parametrize("name", ["input", "loss", "model"])
def test_a_layer_may_have_any_name(
    watching: Callable[..., Any],
    emit: Callable[..., nn.Module],
    defined: Callable[..., dict[str, Any]],
    name: str,
) -> None:
    model = nn.Sequential()
    model.add_module(name, emit(random(5, 6)))
    watched = watching(model)
    x = torch.tensor([[1.0, 2.0]])
    frame = watched.see(x)
    assert watched.outputs(frame, name) == defined(random(5, 6))
    assert frame.scalars["input.absmax"] == 2
    assert frame.scalars["input.mean"] == 1.5
