"""`optim.rms_ratio` of a layer in a real training, against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stepguard

Watch = Callable[..., Any]


def expected(optimizer: torch.optim.Adam, layer: nn.Module, decay: float) -> float:
    """sqrt(mean(g^2 / v)) over all the layer's elements, v as this step's update will find it."""
    ratios = []
    for parameter in layer.parameters(recurse=False):
        state, grad = optimizer.state[parameter], parameter.grad.double()
        second = decay * state["exp_avg_sq"].double() + (1 - decay) * grad**2
        second = second / (1 - decay ** (float(state["step"]) + 1))
        ratios.append((grad**2 / second).flatten())
    return float(torch.cat(ratios).mean().sqrt())


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_the_ratio_of_adam(watching: Watch, decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    watched = watching(model, torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, decay)))
    first = watched.train(torch.randn(8, 6))
    assert "optim.rms_ratio" not in first.vectors
    for _ in range(4):
        watched.backward(torch.randn(8, 6))
        frame = watched.frame()
        for name in ("0", "2"):
            wanted = expected(watched.optimizer, model[int(name)], decay)
            assert watched.read(frame, "optim.rms_ratio", name) == pytest.approx(wanted, rel=1e-3)
        assert watched.read(frame, "optim.rms_ratio", "1") is None
        watched.optimizer.step()
    assert watched.faults == []


def test_an_optimizer_without_second_moment_has_none(watching: Watch) -> None:
    watched = watching(nn.Linear(4, 4))
    for _ in range(3):
        assert "optim.rms_ratio" not in watched.train(torch.randn(5, 4)).vectors


def test_an_optimizer_that_cannot_be_read_costs_this_signal_alone(watching: Watch) -> None:
    watched = watching(model := nn.Linear(4, 4), torch.optim.Adam(nn.Linear(4, 4).parameters()))
    watched.optimizer.state[model.weight] = {"exp_avg_sq": torch.ones(4, 4), "step": "one"}
    watched.optimizer.param_groups[0]["params"].append(model.weight)
    watched.optimizer.param_groups[0]["betas"] = (0.9, "none")
    for _ in range(3):
        watched.model(torch.randn(5, 4)).sum().backward()
        assert np.isfinite(watched.read(watched.frame(), "grad.norm"))
    assert len(watched.faults) == 1


def test_the_rule_on_it_fires_in_a_real_training() -> None:
    """Calm batches let v grow small; then one is a thousand times as loud."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    options: dict[str, Any] = {"rules": "transformer", "run": None, "console": None, "on_error": "raise"}
    with stepguard.watch(model, optimizer, every=1, dry_run=True, **options) as guard:
        fired: list[int] = []
        for step in range(60):
            loss = model(torch.randn(32, 6)).square().mean() * (1000 if step >= 50 else 1)
            optimizer.zero_grad()
            loss.backward()
            guard.step(loss)
            if not fired and any(change.rule == "second-moment-too-small" for change in guard.alerts):
                fired.append(step)
    assert fired
    assert 50 <= fired[0] <= 53
