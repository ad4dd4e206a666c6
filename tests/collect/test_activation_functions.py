"""Activations as modules and as plain functions, which are seen as the input of the layer that they feed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepguard.collect.layers import is_activation, watched_modules

Function = Callable[[Tensor], Tensor]

BOUNDED = {
    "Tanh": nn.Tanh(),
    "Sigmoid": nn.Sigmoid(),
    "Softsign": nn.Softsign(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardtanh": nn.Hardtanh(),
    "Hardtanh of 3": nn.Hardtanh(-3, 3),
    "Hardtanh of -1 to 4": nn.Hardtanh(-1, 4),
    "ReLU6": nn.ReLU6(),
}
UNBOUNDED = [nn.ReLU(), nn.GELU(), nn.LeakyReLU(), nn.ELU(), nn.SiLU(), nn.Softplus(), nn.Linear(8, 8)]


def flat_share(function: Function, x: Tensor) -> float:
    """Share of elements where the slope is at most 1 % of the steepest, without ReLU6's rest at zero."""
    x = x.clone().requires_grad_()
    output = function(x)
    (slope,) = torch.autograd.grad(output.sum(), x)
    flat = slope <= 0.01 * slope.max()
    if isinstance(function, nn.ReLU6):
        flat &= output > 0
    return flat.float().mean().item()


def spread_out(*shape: int) -> Tensor:
    """Numbers on both sides of every bound, and two where all these functions are steep."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 6
    x[0, :2] = torch.tensor([0, 0.5])
    return x


@pytest.mark.parametrize("name", BOUNDED)
def test_saturation_is_the_share_on_the_flat_part(watching: Callable[..., Any], name: str) -> None:
    module, x = BOUNDED[name], spread_out(32, 8)
    expected = flat_share(module, x)
    assert 0.05 < expected < 0.9
    watched = watching(nn.Sequential(module, nn.Linear(8, 1)))
    frame = watched.see(x)
    assert watched.read(frame, "act.saturated", "0") == pytest.approx(expected)
    assert watched.read(frame, "act.saturated", "1") is None


@pytest.mark.parametrize("name", BOUNDED)
def test_saturation_of_a_large_output(watching: Callable[..., Any], name: str) -> None:
    module, x = BOUNDED[name], spread_out(256, 80)
    watched = watching(nn.Sequential(module, nn.Linear(80, 1)))
    expected = pytest.approx(flat_share(module, x), abs=0.03)
    assert watched.read(watched.see(x), "act.saturated", "0") == expected


@pytest.mark.parametrize("module", UNBOUNDED, ids=lambda module: type(module).__name__)
def test_an_unbounded_output_cannot_saturate(watching: Callable[..., Any], module: nn.Module) -> None:
    watched = watching(nn.Sequential(module, nn.Linear(8, 1)))
    frame = watched.see(spread_out(32, 8) * 100)
    assert watched.read(frame, "act.std", "0") is not None
    assert watched.read(frame, "act.saturated", "0") is None


class Between(nn.Module):
    """Two layers and a function between them. It keeps what it gives to the second one."""

    def __init__(self, function: Function, second: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = second or nn.Linear(12, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        given = self.function(self.first(x))
        self.given = given.clone()
        return self.second(given)


FUNCTIONS = {
    "relu": (F.relu, "ReLU"),
    "relu in place": (lambda x: F.relu(x, inplace=True), "ReLU"),
    "relu_": (lambda x: x.relu_(), "ReLU"),
    "tanh": (torch.tanh, "Tanh"),
    "sigmoid": (torch.sigmoid, "Sigmoid"),
    "gelu": (F.gelu, "GELU"),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), "GELU"),
    "silu": (F.silu, "SiLU"),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), "LeakyReLU"),
    "elu": (F.elu, "ELU"),
    "mish": (F.mish, "Mish"),
    "softplus": (F.softplus, "Softplus"),
    "hardtanh": (F.hardtanh, "Hardtanh"),
    "hardswish": (F.hardswish, "Hardswish"),
    "logsigmoid": (F.logsigmoid, "LogSigmoid"),
    "dropout of relu": (lambda x: F.dropout(F.relu(x), 0.5), "ReLU"),
    "reshaped relu": (lambda x: F.relu(x).reshape(2, 3, 12), "ReLU"),
    "viewed relu": (lambda x: F.relu(x).view(3, 2, 12), "ReLU"),
    "relu and a dimension": (lambda x: F.relu(x).unsqueeze(1), "ReLU"),
    "mean of relu": (lambda x: F.relu(x).reshape(2, 3, 12).mean(1), "ReLU"),
    "transposed relu": (lambda x: F.relu(x).reshape(3, 12, 2).transpose(1, 2), "ReLU"),
    "pooled relu": (lambda x: F.avg_pool1d(F.relu(x).unsqueeze(1), 3, 1, 1).squeeze(1), "ReLU"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_plain_function_is_seen_as_the_input_of_the_layer_it_feeds(
    watching: Callable[..., Any], defined: Callable[..., dict[str, Any]], name: str
) -> None:
    function, kind = FUNCTIONS[name]
    watched = watching(Between(function))
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        frame = watched.train(x)
        assert watched.faults == []
        assert [tuple(layer) for layer in watched.layers] == [
            ("first", "Linear"),
            ("second.input", kind),
            ("second", "Linear"),
        ]
        assert watched.outputs(frame, "second.input") == defined(watched.model.given)


IMAGE_FUNCTIONS: dict[str, tuple[Function, nn.Module]] = {
    "flatten": (lambda x: F.relu(x).flatten(1), nn.Linear(4 * 64, 3)),
    "max_pool2d": (lambda x: F.max_pool2d(F.relu(x), 2), nn.Conv2d(4, 2, 1)),
    "avg_pool2d": (lambda x: F.avg_pool2d(F.relu(x), 2), nn.Conv2d(4, 2, 1)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(F.relu(x), 2), nn.Conv2d(4, 2, 1)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(F.relu(x), 2), nn.Conv2d(4, 2, 1)),
    "global mean": (lambda x: F.relu(x).mean((2, 3)), nn.Linear(4, 3)),
    "pool and flatten": (lambda x: F.max_pool2d(F.relu(x), 2).flatten(1), nn.Linear(64, 3)),
    "in place, pooled, dropped, flat": (
        lambda x: F.dropout(F.max_pool2d(F.relu(x, inplace=True), 2), 0.2).flatten(1),
        nn.Linear(64, 3),
    ),
    "dropout2d": (lambda x: F.dropout2d(F.relu(x), 0.2), nn.Conv2d(4, 2, 1)),
    "permuted": (lambda x: F.relu(x).permute(0, 2, 3, 1), nn.Linear(4, 3)),
    "max_pool1d": (lambda x: F.max_pool1d(F.relu(x.flatten(2)), 2), nn.Conv1d(4, 2, 1)),
    "max_pool3d": (lambda x: F.max_pool3d(F.relu(x.unflatten(2, (2, 4))), 2), nn.Conv3d(4, 2, 1)),
    "avg_pool3d": (lambda x: F.avg_pool3d(F.relu(x.unflatten(2, (2, 4))), 2), nn.Conv3d(4, 2, 1)),
}


@pytest.mark.parametrize("name", IMAGE_FUNCTIONS)
def test_pooling_and_layout_may_stand_between(
    watching: Callable[..., Any], defined: Callable[..., dict[str, Any]], name: str
) -> None:
    function, second = IMAGE_FUNCTIONS[name]
    model = Between(function, second)
    model.first = nn.Conv2d(1, 4, 3, padding=1)
    nn.init.zeros_(model.first.weight[1:2]), nn.init.constant_(model.first.bias[1:2], -1)
    watched = watching(model)
    frame = watched.train(torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert watched.names() == ["first", "second.input", "second"]
    unit_dim = -1 if isinstance(second, nn.Linear) else 1
    assert watched.outputs(frame, "second.input") == defined(model.given, unit_dim)


def test_a_bounded_function_may_saturate(watching: Callable[..., Any]) -> None:
    x = spread_out(32, 8)
    for function, module in (
        *((torch.tanh, nn.Tanh()), (torch.sigmoid, nn.Sigmoid()), (F.hardtanh, nn.Hardtanh())),
        *((lambda x: F.hardtanh(x, -3, 3), nn.Hardtanh(-3, 3)), (F.relu6, nn.ReLU6())),
    ):
        model = Between(function, nn.Linear(8, 2))
        model.first = nn.Linear(8, 8, bias=False)
        nn.init.eye_(model.first.weight)
        watched = watching(model)
        found = watched.read(watched.see(x), "act.saturated", "second.input")
        assert found == pytest.approx(flat_share(module, x)), module


def test_relu6_by_its_name(watching: Callable[..., Any]) -> None:
    watched = watching(Between(F.relu6))
    watched.see(torch.randn(6, 8))
    assert watched.layers[1].type == "ReLU6"


@pytest.mark.parametrize(
    "between",
    [
        [nn.ReLU()],
        [nn.ReLU(inplace=True)],
        [nn.Tanh(), nn.Dropout(0.5)],
        [nn.GELU(), nn.Flatten()],
        [nn.ReLU6(), nn.Identity()],
        [nn.LeakyReLU(), nn.Unflatten(1, (1, 12)), nn.AvgPool1d(3, 1, 1), nn.Flatten()],
    ],
    ids=lambda modules: type(modules[0]).__name__,
)
def test_an_activation_module_is_not_shown_twice(
    watching: Callable[..., Any], between: list[nn.Module]
) -> None:
    watched = watching(nn.Sequential(nn.Linear(8, 12), *between, nn.Linear(12, 4)))
    watched.train(torch.randn(6, 8))
    assert watched.names() == ["0", "1", str(len(between) + 1)]


@pytest.mark.parametrize("choice", ["Linear", ["0", "2"], "[02]"])
def test_an_activation_module_that_was_not_chosen_stays_out(
    watching: Callable[..., Any], choice: Any
) -> None:
    watched = watching(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)), choice=choice)
    watched.train(torch.randn(6, 8))
    assert watched.names() == ["0", "2"]


class Branches(nn.Module):
    """Two layers side by side, and what becomes of them goes to a third."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 4)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(self.left(x), self.right(x)))


@pytest.mark.parametrize(
    "join",
    [
        pytest.param(lambda a, b: a + F.relu(b), id="residual sum"),
        pytest.param(lambda a, b: F.relu(a) + b, id="residual sum, other order"),
        pytest.param(lambda a, b: F.relu(a) - b, id="difference"),
        pytest.param(lambda a, b: torch.sigmoid(a) * b, id="gated linear unit"),
        pytest.param(lambda a, b: b * torch.sigmoid(a), id="gated linear unit, other order"),
        pytest.param(lambda a, b: F.silu(a) * b, id="SwiGLU"),
        pytest.param(lambda a, b: torch.sigmoid(a) * torch.tanh(b), id="LSTM cell"),
        pytest.param(lambda a, b: torch.tanh(a) @ b.t() @ b, id="product of matrices"),
        pytest.param(lambda a, b: torch.cat([F.relu(a)[:, :6], b[:, :6]], 1), id="joined"),
        pytest.param(lambda a, b: F.layer_norm(F.relu(a + b), (12,)), id="normalised"),
    ],
)
def test_what_is_not_an_activation_any_more_is_not_taken_for_one(
    watching: Callable[..., Any], join: Callable[[Tensor, Tensor], Tensor]
) -> None:
    watched = watching(Branches(join))
    watched.train(torch.randn(6, 8))
    assert watched.names() == ["left", "right", "last"]


def test_an_activation_that_feeds_two_layers_is_shown_once(watching: Callable[..., Any]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.first(x))
            return self.a(hidden) + self.b(hidden)

    watched = watching(Model())
    watched.train(torch.randn(6, 8))
    assert watched.names() == ["first", "a.input", "a", "b"]


def test_an_activation_of_the_data_is_no_activation_of_the_network(watching: Callable[..., Any]) -> None:
    watched = watching(nn.Linear(8, 4))
    watched.train(torch.randn(6, 8).relu())
    assert watched.names() == ["Linear"]


def test_activations_of_ones_own_are_known_by_their_names() -> None:
    class GeneralRelu(nn.Module):
        pass

    class MySwish(nn.Module):
        pass

    class Reluctant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Identity()

    assert is_activation(GeneralRelu())
    assert is_activation(MySwish())
    assert is_activation(nn.Softmax(-1))
    assert not is_activation(Reluctant())
    assert not any(map(is_activation, [nn.Identity(), nn.Dropout(), nn.MaxPool2d(2), nn.Flatten()]))


def test_what_is_watched_by_default() -> None:
    model = nn.Sequential(
        *[nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout()],
        *[nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 2, 8)],
    )
    names = [item.layer.name for item in watched_modules(model)]
    assert names[:4] == ["0", "1", "2", "6"]
    assert "7.linear1" in names
    assert "7.self_attn" in names
    assert "7" not in names
