"""The diagnoses of real trainings with a fault that no restart can cure name it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import stepguard

LEARNS = "- {name: look, when: step == 6 and loss > -1e30}"
NONFINITE = "- {name: look, when: nonfinite(loss)}"
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Halves(nn.Module):
    """An encoder and a head, with a mistake between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).detach())


def a_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def told(file: Any, loss_of: Loss, make: Callable[[], nn.Module] = a_net, every: Any = "auto") -> str:
    """What is printed of a training of twelve steps."""
    torch.manual_seed(0)
    model, out = make(), io.StringIO()
    console = Console(file=out, width=300, force_terminal=True, color_system=None, _environ={})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with stepguard.watch(
        model, optimizer, rules=file, run=None, console=console, every=every, on_error="raise"
    ) as guard:
        for _ in range(12):
            x, y = torch.randn(32, 8), torch.randint(3, (32,))
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            guard.step(loss)
    return out.getvalue()


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


class Once:
    """A loss whose eighth call is given something bad."""

    def __init__(self, *, in_inputs: bool) -> None:
        self.calls, self.in_inputs = 0, in_inputs

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        weights = torch.ones(len(x))
        if self.calls == 8:
            (x[3, :5] if self.in_inputs else weights[3:4]).fill_(torch.nan)
        return (F.cross_entropy(model(x), y, reduction="none") * weights).mean()


@pytest.mark.parametrize("every", [1, 5], ids=["measured", "not measured"])
def test_nan_in_the_batch(rules, every: int) -> None:
    text = told(rules(NONFINITE), Once(in_inputs=True), every=every)
    assert "the batch itself: its inputs hold 5 values that are NaN or Inf at step 7" in text


@pytest.mark.parametrize("every", [1, 5], ids=["measured", "not measured"])
def test_nan_behind_the_model(rules, every: int) -> None:
    text = told(rules(NONFINITE), Once(in_inputs=False), every=every)
    assert "the model's outputs are finite (" in text
    assert "look at the targets, their masks and the loss itself" in text


def test_a_detached_encoder(rules) -> None:
    text = told(rules(LEARNS), plain, Halves)
    assert (
        "2 of 3 layers, encoder.0 (Linear) to encoder.2 (Linear), require a gradient and never had one"
        in text
    )


def test_a_frozen_encoder_is_no_mistake(rules) -> None:
    def frozen() -> nn.Module:
        model = Halves()
        model.encoder.requires_grad_(False)
        return model

    text = told(rules(LEARNS), plain, frozen)
    assert "look" in text
    assert "likely" not in text


def test_a_loss_that_does_not_depend_on_the_model(rules) -> None:
    text = told(
        rules(LEARNS), lambda model, x, y: model(x).detach().mean() + torch.ones(1, requires_grad=True)
    )
    assert "no layer ever had a gradient, though they require one" in text
