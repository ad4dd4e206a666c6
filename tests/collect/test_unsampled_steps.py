"""Steps that are not sampled: the loss, and whether all gradients are finite; everything if they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepguard.collect.losses import scalar_loss

Watch = Callable[..., Any]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 80), nn.ReLU(), nn.Linear(80, 80), nn.Linear(80, 2))


def spoil(parameter: Tensor, value: float, place: int = -1) -> None:
    assert parameter.grad is not None
    parameter.grad.flatten()[place] = value


def test_a_healthy_step_holds_the_loss_and_that_the_gradients_are_finite(watching: Watch) -> None:
    watched = watching(net())
    watched.train(torch.randn(5, 4))
    watched.collector.active = False
    for _ in range(3):
        loss = watched.backward(torch.randn(5, 4))
        frame = watched.frame(loss, sampled=False)
        assert frame.scalars == {"loss": pytest.approx(loss.item())}
        assert list(frame.vectors) == ["grad.nonfinite"]
        assert frame.hist is None
        assert [watched.read(frame, "grad.nonfinite", name) for name in watched.names()] == [0, None, 0, 0]


def test_a_layer_without_gradient_is_not_said_to_be_finite(watching: Watch) -> None:
    model = net()
    model[2].requires_grad_(False)
    watched = watching(model)
    frame = watched.train(torch.randn(5, 4), sampled=False)
    assert [watched.read(frame, "grad.nonfinite", name) for name in watched.names()] == [0, None, None, 0]
    watched.optimizer.zero_grad()
    assert watched.frame(sampled=False).vectors == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("place", [0, -1, 5])
def test_a_bad_gradient_brings_all_of_the_gradients_in_the_same_frame(
    watching: Watch, bad: float, layer: int, place: int
) -> None:
    model = net()
    watched = watching(model)
    watched.train(torch.randn(5, 4))
    loss = watched.backward(torch.randn(5, 4))
    spoil(model[layer].weight, bad, place)
    frame = watched.frame(loss, sampled=False)
    assert frame.scalars["loss"] == pytest.approx(loss.item())
    assert not np.isfinite(frame.scalars["grad_norm"])
    for i in (0, 2, 3):
        assert watched.read(frame, "grad.nonfinite", str(i)) == (i == layer)
        assert np.isfinite(watched.read(frame, "grad.norm", str(i))) == (i != layer)
        assert watched.read(frame, "weight.nonfinite", str(i)) == 0
        if i != layer:
            largest = max(p.grad.abs().max().item() for p in model[i].parameters())
            assert watched.read(frame, "grad.absmax", str(i)) == pytest.approx(largest)
    assert watched.read(frame, "grad.norm", "1") is None


def test_opposite_infinities_do_not_cancel(watching: Watch) -> None:
    watched = watching(model := net())
    watched.backward(torch.randn(5, 4))
    spoil(model[0].weight, np.inf, 0)
    spoil(model[0].weight, -np.inf, 1)
    assert watched.read(watched.frame(sampled=False), "grad.nonfinite", "0") == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_in_any_number_format(watching: Watch, dtype: torch.dtype) -> None:
    watched = watching(model := net().to(dtype))
    x = torch.randn(5, 4, dtype=dtype)
    frame = watched.train(x, sampled=False)
    assert list(frame.vectors) == ["grad.nonfinite"]
    watched.backward(x)
    spoil(model[3].bias, np.inf)
    assert watched.read(watched.frame(sampled=False), "grad.nonfinite", "3") == 1


def test_parameters_in_several_number_formats(watching: Watch) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).double())

    for name in ("a", "b"):
        watched = watching(model := Mixed())
        frame = watched.train(torch.randn(3, 4), sampled=False)
        assert [watched.read(frame, "grad.nonfinite", each) for each in ("a", "b")] == [0, 0]
        watched.backward(torch.randn(3, 4))
        spoil(getattr(model, name).weight, np.nan)
        frame = watched.frame(sampled=False)
        assert [watched.read(frame, "grad.nonfinite", each) for each in ("a", "b")] == [
            name == "a",
            name == "b",
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_large_finite_gradients_are_not_called_non_finite(watching: Watch, dtype: torch.dtype) -> None:
    """Their sum may leave the number format."""
    watched = watching(model := net().to(dtype))
    watched.backward(torch.randn(5, 4, dtype=dtype))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.finfo(dtype).max)
    frame = watched.frame(sampled=False)
    assert [watched.read(frame, "grad.nonfinite", str(i)) for i in (0, 2, 3)] == [0, 0, 0]


def test_a_bad_sparse_gradient_is_found(watching: Watch) -> None:
    watched = watching(model := nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2)))
    tokens = torch.tensor([[1, 2, 2]])
    frame = watched.train(tokens, sampled=False)
    assert [watched.read(frame, "grad.nonfinite", name) for name in ("0", "1")] == [0, 0]
    watched.backward(tokens)
    model[0].weight.grad = model[0].weight.grad.coalesce()
    model[0].weight.grad.values()[1, 2] = np.nan
    assert watched.read(watched.frame(sampled=False), "grad.nonfinite", "0") == 1


def test_an_update_across_a_bad_unsampled_step_is_that_of_one_step(watching: Watch) -> None:
    watched = watching(model := net())
    watched.train(torch.randn(5, 4))
    watched.train(torch.randn(5, 4), sampled=False)
    watched.backward(torch.randn(5, 4))
    spoil(model[0].weight, np.nan)
    frame = watched.frame(sampled=False)
    assert "update.ratio" not in frame.vectors
    frame = watched.train(torch.randn(5, 4))
    assert watched.read(frame, "update.ratio", "0") == 0


def test_the_step_before_a_sampled_one_may_be_remembered(watching: Watch) -> None:
    """So that the first sampled step after others knows its update, too."""
    watched = watching(model := net())
    watched.train(torch.randn(5, 4))
    watched.train(torch.randn(5, 4), sampled=False)
    watched.backward(torch.randn(5, 4))
    watched.frame(sampled=False)
    watched.collector.remember(2)
    before = model[3].weight.detach().clone(), model[3].bias.detach().clone()
    watched.optimizer.step()
    after = model[3].weight.detach(), model[3].bias.detach()
    moved = sum((a - b).square().sum() for a, b in zip(after, before, strict=True)).sqrt()
    size = sum(a.square().sum() for a in after).sqrt()
    frame = watched.train(torch.randn(5, 4))
    assert watched.read(frame, "update.ratio", "3") == pytest.approx((moved / size).item(), rel=1e-3)


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [1.5, np.nan, -np.inf])
def test_the_loss_is_told_as_it_is(watching: Watch, value: float, dtype: torch.dtype, sampled: bool) -> None:
    watched = watching(net())
    frame = watched.frame(torch.tensor(value, dtype=dtype), sampled=sampled)
    assert frame.scalars["loss"] == pytest.approx(value, nan_ok=True)
    assert frame.step == 0
    assert "loss" not in watched.frame(None, sampled=sampled).scalars


def test_a_loss_in_double_precision_keeps_it(watching: Watch) -> None:
    watched = watching(net())
    assert watched.frame(torch.tensor(1 / 3, dtype=torch.float64)).scalars["loss"] == 1 / 3


@pytest.mark.parametrize(
    "loss", [torch.tensor(2.0), torch.tensor([[2.0]]), torch.tensor(2), nn.Parameter(torch.tensor(2.0))]
)
def test_a_scalar_loss(loss: Tensor) -> None:
    found = scalar_loss(loss if not loss.is_floating_point() else loss.requires_grad_())
    assert found.shape == ()
    assert not found.requires_grad
    assert found == 2


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (2.0, "got float"),
        (None, "got NoneType"),
        ([torch.tensor(1.0)], "got list"),
        (torch.zeros(3), r"of shape \[3\] and torch.float32"),
        (torch.zeros(0), r"of shape \[0\]"),
        (torch.tensor(1j), "torch.complex64"),
    ],
)
def test_a_loss_that_is_none_is_told_so(loss: object, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        scalar_loss(loss)
