"""The pace of an attempt, and what it makes of a training at any learning rate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import stepguard
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.recover.pacing import LONG, annealed
from stepguard.recover.recovery import Observation


def test_of_known_length_the_pace_comes_down_in_the_second_half() -> None:
    assert [annealed(step, 400) for step in (0, 100, 200, 300, 400)] == [1.0, 1.0, 1.0, 0.5, 0.01]


def test_of_unknown_length_it_falls_with_the_root_of_the_steps() -> None:
    assert annealed(0, None) == 1.0
    assert annealed(LONG, None) == pytest.approx(0.5**0.5)
    assert annealed(100 * LONG, None) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("lr", [1e-6, 30.0])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("total_steps", [150, None])
def test_a_network_at_any_learning_rate_learns(lr: float, adam: bool, total_steps: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    y = (x @ torch.randn(20, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=lr)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step < 100 else 1000.0)
    moved: list[float] = []

    def see(seen: Observation) -> None:
        if "update.ratio" in seen.frame.vectors:
            moved.extend(seen.frame.vectors["update.ratio"].values[[0, 2]])

    token = CURRENT.set(Attempt(number=2, pace=0.01))
    try:
        with stepguard.watch(
            model, optimizer, scheduler=scheduler, run=None, console=None, total_steps=total_steps
        ) as guard:
            guard.subscribe(see)
            for step in range(150):
                batch = slice(64 * (step % 8), 64 * (step % 8) + 64)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                guard.step(loss)
                scheduler.step()
    finally:
        CURRENT.reset(token)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.8
    assert moved[:100] == pytest.approx([0.01] * 100, rel=0.05), "both layers, from the first step on"
