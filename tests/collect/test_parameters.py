"""Gradients, weights and updates against numpy on the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

Watch = Callable[..., Any]


def flat(tensors: Iterable[Tensor]) -> np.ndarray:
    """All numbers in double precision; of complex ones both parts."""
    parts = [t.detach().to_dense() if t.is_sparse else t.detach() for t in tensors]
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in parts]
    return np.concatenate([t.double().flatten().numpy() for t in parts])


def norm_rms_absmax(x: np.ndarray) -> list[Any]:
    found = np.linalg.norm(x), np.sqrt(np.mean(x**2)), np.abs(x).max()
    return [pytest.approx(float(value), rel=1e-4, abs=0) for value in found]


def weights(parameters: Iterable[Tensor]) -> dict[str, Any]:
    """The signals of some parameters by their definitions."""
    x = flat(parameters)
    norm, rms, absmax = norm_rms_absmax(x)
    return {"weight.norm": norm, "weight.rms": rms, "weight.absmax": absmax, "weight.nonfinite": 0}


def grads(parameters: Iterable[Tensor], *, zero_within: float = 1e-6) -> dict[str, Any]:
    """The signals of the gradients that there are, by their definitions."""
    x = flat(p.grad for p in parameters if p.grad is not None)
    norm, rms, absmax = norm_rms_absmax(x)
    zero = pytest.approx(np.mean(x == 0), abs=zero_within)
    return {"grad.norm": norm, "grad.rms": rms, "grad.absmax": absmax, "grad.zero": zero, "grad.nonfinite": 0}


def assert_as_defined(watched: Any, frame: Any, **modules: nn.Module) -> None:
    for name, module in modules.items():
        own = list(module.parameters(recurse=False))
        assert watched.all(frame, "weight", name) == weights(own), name
        assert watched.all(frame, "grad", name) == grads(own), name


class Net(nn.Module):
    """A convolution, a norm and a linear layer, with some gradients of exactly zero."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, dtype=dtype)
        self.norm = nn.BatchNorm2d(6, dtype=dtype)
        self.relu = nn.ReLU()
        self.head = nn.Linear(6, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(x))).mean((2, 3)))


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gradients_and_weights(watching: Watch, dtype: torch.dtype) -> None:
    model = Net(dtype)
    with torch.no_grad():
        model.head.weight[0] = 0
        model.norm.bias[2] = -100
    watched = watching(model)
    for _ in range(3):
        watched.backward(images(dtype))
        frame = watched.frame()
        assert_as_defined(watched, frame, conv=model.conv, norm=model.norm, head=model.head)
        assert watched.all(frame, "grad", "relu") == watched.all(frame, "weight", "relu") == {}
        everything = flat(p.grad for p in model.parameters())
        assert frame.scalars["grad_norm"] == pytest.approx(np.linalg.norm(everything), rel=1e-4)
        watched.optimizer.step()


@pytest.mark.parametrize("shape", [(64, 64), (4097,), (300, 200), (7, 11, 13, 17)], ids=str)
@pytest.mark.parametrize("scale", [1e-10, 1e-6, 1.0, 1e10])
def test_large_parameters_are_measured_whole(
    watching: Watch, emit: Callable[..., nn.Module], shape: tuple[int, ...], scale: float
) -> None:
    layer = emit(torch.ones(2, 2))
    layer.weight = nn.Parameter(torch.randn(shape) * scale)
    layer.weight.grad = torch.randn(shape) * scale
    layer.weight.grad.flatten()[-1] = 50 * scale
    layer.weight.data.flatten()[-2] = -60 * scale
    watched = watching(layer)
    frame = watched.see()
    assert watched.all(frame, "weight") == weights([layer.weight])
    assert watched.all(frame, "grad") == grads([layer.weight], zero_within=0.05)


@pytest.mark.parametrize("shape", [(8, 8), (80, 80)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_numbers_whose_squares_leave_single_precision(
    watching: Watch, emit: Callable[..., nn.Module], shape: tuple[int, ...], scale: float
) -> None:
    """Of large parameters the norm may then come from the sample."""
    layer = emit(torch.ones(2, 2))
    layer.weight = nn.Parameter(torch.randn(shape) * scale)
    layer.weight.grad = torch.randn(shape) * scale
    watched = watching(layer)
    frame = watched.see()
    for kind, tensor in (("weight", layer.weight), ("grad", layer.weight.grad)):
        norm = np.linalg.norm(flat([tensor]))
        assert watched.read(frame, f"{kind}.norm") == pytest.approx(norm, rel=0.1)
        assert watched.read(frame, f"{kind}.absmax") == pytest.approx(tensor.abs().max().item())


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
def test_the_share_of_zero_gradients_of_a_large_parameter(
    watching: Watch, emit: Callable[..., nn.Module], step: int
) -> None:
    layer = emit(torch.ones(2, 2))
    layer.weight = nn.Parameter(torch.randn(256, 192))
    layer.weight.grad = torch.randn(256, 192)
    layer.weight.grad[:, ::step] = 0
    watched = watching(layer)
    assert watched.read(watched.see(), "grad.zero") == pytest.approx(1 / step, abs=0.03)


@pytest.mark.parametrize("size", [5, 70])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_numbers_are_counted_one_by_one(
    watching: Watch, emit: Callable[..., nn.Module], size: int, bad: float
) -> None:
    layer = emit(torch.ones(2, 2))
    layer.weight = nn.Parameter(torch.randn(size, size))
    layer.weight.grad = torch.randn(size, size)
    layer.weight.grad[1, 2] = layer.weight.grad[3, 4] = layer.weight.data[2, 2] = bad
    watched = watching(nn.Sequential(layer, nn.Linear(2, 2)))
    frame = watched.see(torch.ones(1))
    assert watched.read(frame, "grad.nonfinite", "0") == 2
    assert watched.read(frame, "weight.nonfinite", "0") == 1
    assert watched.read(frame, "weight.nonfinite", "1") == 0
    assert not np.isfinite(frame.scalars["grad_norm"])
    assert not np.isfinite(watched.read(frame, "grad.absmax", "0"))
    assert np.isfinite(watched.read(frame, "weight.norm", "1"))


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced", "expanded gradient"])
def test_parameters_and_gradients_of_any_layout(
    watching: Watch, emit: Callable[..., nn.Module], layout: str
) -> None:
    def made() -> Tensor:
        if layout == "transposed":
            return torch.randn(80, 70).t()
        if layout == "channels_last":
            return torch.randn(20, 16, 5, 5).to(memory_format=torch.channels_last)
        return torch.randn(90, 180)[:, ::2]

    layer = emit(torch.ones(2, 2))
    layer.weight = nn.Parameter(made())
    layer.weight.grad = torch.tensor(2.0).expand(90, 90) if layout.startswith("expanded") else made()
    watched = watching(layer)
    frame = watched.see()
    assert watched.all(frame, "weight") == weights([layer.weight])
    assert watched.all(frame, "grad") == grads([layer.weight])


def test_frozen_parameters_have_weights_and_no_gradients(watching: Watch) -> None:
    model = Net()
    model.conv.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    watched = watching(model)
    for _ in range(2):
        watched.backward(images())
        frame = watched.frame()
        assert watched.all(frame, "weight", "conv") == weights(model.conv.parameters())
        assert watched.all(frame, "grad", "conv") == {}
        assert watched.all(frame, "grad", "head") == grads(model.head.parameters())
        assert watched.read(frame, "update.ratio", "conv") is None
        watched.optimizer.step()
    assert watched.read(frame, "update.ratio", "norm") is not None
    moved = 0.1 * np.linalg.norm(flat([model.head.weight.grad]))
    expected = moved / np.linalg.norm(flat(model.head.parameters()))
    frame = watched.train(images())
    assert watched.read(frame, "update.ratio", "head") == pytest.approx(expected, rel=1e-3)


def test_without_a_gradient_in_this_step_there_is_none(watching: Watch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watched = watching(model)
    watched.train(torch.randn(5, 4))
    frame = watched.train(torch.randn(5, 4), loss=lambda y: model[1](torch.ones(1, 4)).sum())
    assert watched.all(frame, "grad", "0") == {}
    assert watched.all(frame, "grad", "1") == grads(model[1].parameters())
    frame = watched.train(torch.randn(5, 4))
    assert len(watched.all(frame, "grad", "0")) == 5
    watched.optimizer.zero_grad()
    frame = watched.frame()
    assert not [signal for signal in frame.vectors if signal.startswith("grad.")]
    assert "grad_norm" not in frame.scalars
    assert len(watched.all(frame, "weight", "0")) == 4


def test_gradients_of_zero_are_not_absent(watching: Watch) -> None:
    watched = watching(nn.Linear(4, 4))
    frame = watched.train(torch.randn(5, 4), loss=lambda y: (y * 0).sum())
    assert watched.all(frame, "grad") == {
        **{"grad.norm": 0, "grad.rms": 0, "grad.absmax": 0, "grad.zero": 1, "grad.nonfinite": 0}
    }
    assert frame.scalars["grad_norm"] == 0


def test_shared_parameters_count_in_each_layer_and_once_in_all(watching: Watch) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 6)
            self.head = nn.Linear(6, 20)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    watched = watching(model := Tied())
    watched.backward(torch.arange(10).reshape(2, 5))
    frame = watched.frame()
    assert_as_defined(watched, frame, embed=model.embed, head=model.head)
    everything = flat([model.embed.weight.grad, model.head.bias.grad])
    assert frame.scalars["grad_norm"] == pytest.approx(np.linalg.norm(everything), rel=1e-5)


class Words(nn.Module):
    def __init__(self, size: int = 50) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, 4, padding_idx=0, sparse=True)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


@pytest.mark.parametrize("size", [50, 3000])
@pytest.mark.parametrize("tokens", [[[1, 2, 3], [4, 5, 6]], [[7, 7, 7], [7, 0, 9]], [[8, 8, 8]]], ids=str)
def test_sparse_gradients_are_the_dense_ones(watching: Watch, size: int, tokens: list[list[int]]) -> None:
    watched = watching(model := Words(size))
    for _ in range(2):
        watched.backward(torch.tensor(tokens))
        frame = watched.frame()
        expected = grads([model.embed.weight])
        found = watched.all(frame, "grad", "embed")
        assert found.pop("grad.zero") <= 1
        assert found == {signal: value for signal, value in expected.items() if signal != "grad.zero"}
        watched.optimizer.step()
    assert watched.faults == []


def test_a_sparse_gradient_without_entries(watching: Watch) -> None:
    watched = watching(model := Words())
    watched.backward(torch.zeros(2, 3, dtype=torch.long))
    assert model.embed.weight.grad.coalesce().values().numel() == 0
    frame = watched.frame()
    assert watched.read(frame, "grad.norm", "embed") in (None, 0)
    assert watched.all(frame, "grad", "head") == grads(model.head.parameters())
    frame = watched.train(torch.ones(2, 3, dtype=torch.long))
    assert watched.read(frame, "grad.norm", "embed") > 0


def test_the_number_of_sparse_entries_may_change(watching: Watch) -> None:
    watched = watching(model := Words())
    for tokens in ([1, 2], [1], [3, 4, 5, 6], [1, 1], list(range(50))):
        watched.backward(torch.tensor(tokens))
        frame = watched.frame()
        assert watched.read(frame, "grad.norm", "embed") == grads([model.embed.weight])["grad.norm"]


def test_parameters_outside_the_watched_layers_count_in_the_norm_of_all(watching: Watch) -> None:
    model = Net()
    watched = watching(model, choice="head")
    watched.backward(images())
    frame = watched.frame()
    assert watched.names() == ["head"]
    assert_as_defined(watched, frame, head=model.head)
    everything = flat(p.grad for p in model.parameters())
    assert frame.scalars["grad_norm"] == pytest.approx(np.linalg.norm(everything), rel=1e-4)


def test_a_layer_whose_parameters_have_two_number_formats(watching: Watch) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Parameter(torch.randn(4, 6).to(torch.bfloat16))
            self.adapter = nn.Parameter(torch.randn(4, 6))
            self.scale = nn.Parameter(torch.randn(6, dtype=torch.float64))
            self.phase = nn.Parameter(torch.randn(6, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ (self.base.float() + self.adapter)) * self.scale * self.phase.abs()

    model = nn.Sequential(Mixed(), nn.Linear(6, 2, dtype=torch.float64))
    watched = watching(model)
    for _ in range(2):
        watched.backward(torch.randn(5, 4))
        frame = watched.frame()
        assert_as_defined(watched, frame, **{"0": model[0], "1": model[1]})
        before = flat(model[0].parameters())
        watched.optimizer.step()
    after = flat(model[0].parameters())
    expected = np.linalg.norm(after - before) / np.linalg.norm(after)
    found = watched.read(watched.train(torch.randn(5, 4)), "update.ratio", "0")
    assert found == pytest.approx(expected, rel=1e-3)


def test_complex_parameters(watching: Watch) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(70, 80, dtype=torch.complex64))
            self.bias = nn.Parameter(torch.randn(80, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    watched = watching(model := Complex())
    watched.backward(torch.randn(5, 70, dtype=torch.complex64), loss=lambda y: y.abs().square().mean())
    frame = watched.frame()
    assert watched.all(frame, "weight") == weights(model.parameters())
    assert watched.all(frame, "grad") == grads(model.parameters())


def test_a_layer_whose_weights_are_exchanged(watching: Watch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    watched = watching(model)
    watched.train(torch.randn(5, 4))
    model[0].weight.data = torch.randn(4, 4) * 9
    model[1].load_state_dict({"weight": torch.ones(4, 4), "bias": torch.ones(4)})
    watched.backward(torch.randn(5, 4))
    assert_as_defined(watched, watched.frame(), **{"0": model[0], "1": model[1]})


def test_a_layer_that_is_given_weights_of_another_shape(watching: Watch) -> None:
    watched = watching(model := nn.Linear(4, 4))
    watched.train(torch.randn(5, 4))
    model.weight.data, model.weight.grad = torch.randn(4, 9), None
    watched.backward(torch.randn(5, 9))
    frame = watched.frame()
    assert watched.all(frame, "weight") == weights(model.parameters())
    assert watched.read(frame, "update.ratio") is None or np.isfinite(watched.read(frame, "update.ratio"))


def test_a_model_that_changes_its_number_format(watching: Watch) -> None:
    watched = watching(model := nn.Linear(4, 4))
    watched.train(torch.randn(5, 4))
    model.double()
    watched.backward(torch.randn(5, 4, dtype=torch.float64))
    frame = watched.frame()
    assert watched.all(frame, "weight") == weights(model.parameters())
    assert watched.all(frame, "grad") == grads(model.parameters())


def test_several_parameter_groups(watching: Watch) -> None:
    model = Net()
    groups = [
        {"params": model.conv.parameters(), "lr": 0.5},
        {"params": model.norm.parameters(), "lr": 0.0},
        {"params": model.head.parameters(), "lr": 0.05},
    ]
    watched = watching(model, torch.optim.SGD(groups, lr=0.1))
    watched.train(images())
    rates = {"conv": 0.5, "norm": 0.0, "head": 0.05}
    layers = [(name, getattr(model, name), rate) for name, rate in rates.items()]
    moved = {name: rate * np.linalg.norm(flat(p.grad for p in m.parameters())) for name, m, rate in layers}
    sizes = {name: np.linalg.norm(flat(m.parameters())) for name, m, _ in layers}
    frame = watched.train(images())
    for name in rates:
        expected = pytest.approx(moved[name] / sizes[name], rel=1e-3)
        assert watched.read(frame, "update.ratio", name) == expected


@pytest.mark.parametrize("width", [4, 100])
def test_the_update_of_sgd_is_the_rate_times_the_gradient(watching: Watch, width: int) -> None:
    """Of large parameters it is estimated from a sample of coordinates."""
    model = nn.Sequential(nn.Linear(8, width), nn.Linear(width, width))
    watched = watching(model, torch.optim.SGD(model.parameters(), lr=0.3))
    frame = watched.train(torch.randn(16, 8))
    assert "update.ratio" not in frame.vectors
    for _ in range(3):
        steps = [0.3 * np.linalg.norm(flat(p.grad for p in layer.parameters())) for layer in model]
        sizes = [np.linalg.norm(flat(layer.parameters())) for layer in model]
        frame = watched.train(torch.randn(16, 8))
        for i in range(2):
            expected = pytest.approx(steps[i] / sizes[i], rel=1e-3 if width == 4 else 0.1)
            assert watched.read(frame, "update.ratio", str(i)) == expected


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
@pytest.mark.parametrize("width", [12, 130])
def test_the_update_of_any_optimizer_is_how_far_the_weights_moved(
    watching: Watch, kind: type[torch.optim.Optimizer], width: int
) -> None:
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width))
    watched = watching(model, kind(model.parameters(), lr=0.01))
    before = [flat(model[i].parameters()) for i in (0, 2)]
    watched.train(torch.randn(16, 8))
    for _ in range(3):
        after = [flat(model[i].parameters()) for i in (0, 2)]
        expected = [np.linalg.norm(b - a) / np.linalg.norm(b) for a, b in zip(before, after, strict=True)]
        before = after
        frame = watched.train(torch.randn(16, 8))
        for name, ratio in zip(("0", "2"), expected, strict=True):
            found = watched.read(frame, "update.ratio", name)
            assert found == pytest.approx(ratio, rel=1e-3 if width == 12 else 0.1)
        assert watched.read(frame, "update.ratio", "1") is None


def test_an_update_is_of_one_step(watching: Watch) -> None:
    watched = watching(nn.Linear(4, 4))
    watched.train(torch.randn(5, 4))
    watched.train(torch.randn(5, 4), sampled=False)
    frame = watched.train(torch.randn(5, 4))
    assert "update.ratio" not in frame.vectors
    frame = watched.train(torch.randn(5, 4))
    assert watched.read(frame, "update.ratio") > 0


def test_weights_that_do_not_move(watching: Watch) -> None:
    watched = watching(model := nn.Linear(4, 4), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1))
    for _ in range(2):
        watched.model(torch.randn(2, 4)).sum().backward()
        frame = watched.frame()
    assert watched.read(frame, "update.ratio") == 0
    assert watched.all(frame, "weight") == weights(model.parameters())


def test_there_is_no_ratio_to_weights_of_zero(watching: Watch) -> None:
    model = nn.Linear(4, 4)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    watched = watching(model, torch.optim.SGD(model.parameters(), lr=0))
    for _ in range(2):
        frame = watched.train(torch.randn(5, 4))
    assert watched.read(frame, "update.ratio") is None
    assert watched.read(frame, "weight.norm") == 0


def test_a_parameter_without_elements(watching: Watch) -> None:
    class Hollow(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.nothing = nn.Parameter(torch.zeros(0, 3))

    watched = watching(model := Hollow())
    watched.backward(torch.randn(5, 4), loss=lambda y: y.square().mean() + model.nothing.sum())
    frame = watched.frame()
    assert watched.all(frame, "weight") == weights(model.parameters())
    assert watched.all(frame, "grad") == grads(model.parameters())
