"""Trainings of which most batches are bad, under the shipped rules with nobody watching."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepguard
from stepguard.errors import TrainingStopped

STEPS = 400


def _trained(attempt: stepguard.Attempt, bad: Callable[[int], bool], deeds: list[tuple[int, str]]) -> float:
    """A net that learns four classes; bad batches hold a target of NaN."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 12, generator=generator)
    y = F.one_hot((x @ torch.randn(12, 4, generator=generator)).argmax(1), 4).float()
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with stepguard.watch(
        model, optimizer, run=None, console=None, total_steps=STEPS, on_error="raise"
    ) as guard:
        for step in range(STEPS):
            batch = torch.randint(512, (64,))
            targets = y[batch].where(torch.tensor(not bad(step)), float("nan"))
            loss = F.mse_loss(model(x[batch]), targets)
            optimizer.zero_grad()
            loss.backward()
            guard.step(loss)
            deeds += [(attempt.number, d.kind) for d in guard.decisions[-1:] if d.step == step]
    return float((model(x).argmax(1) == y.argmax(1)).float().mean())


def test_bad_batches_that_come_again_after_a_restart_are_left_out() -> None:
    """Four in five hold a NaN, too many to ever go back; what is finite teaches."""
    deeds: list[tuple[int, str]] = []
    right = stepguard.supervise(lambda a: _trained(a, lambda step: step % 5 > 0, deeds), 4)
    assert right > 0.8
    assert deeds.count((1, "skip")) == 3, "the first attempt is given up: the rate may be to blame"
    assert deeds.count((2, "skip")) == STEPS * 4 // 5


def test_where_no_batch_is_good_the_training_ends_all_the_same() -> None:
    with pytest.raises(TrainingStopped, match="nan"):
        stepguard.supervise(lambda a: _trained(a, lambda step: True, []), 2, budget=1.0)
