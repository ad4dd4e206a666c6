"""The search for the learning rate in the first steps of an attempt."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import stepguard
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.recover.pacing import START, STEPS, Pacer
from stepguard.signals import Frame, Vector


class Rate:
    """A learning rate under a schedule, and a model whose layers move in proportion to it."""

    def __init__(self, lr: float, speed: float, schedule: Callable[[int], float] = lambda _: 1.0) -> None:
        self.base, self.speed, self.schedule, self.step = lr, speed, schedule, 0
        self.used: list[float] = []

    @property
    def lr(self) -> float:
        return self.base * self.schedule(self.step)

    def scale(self, factor: float) -> None:
        self.base *= factor

    def frame(self) -> Frame:
        if not self.used:
            return Frame(0, {}, {})
        ratio = self.speed * self.used[-1]
        moved = np.full(3, ratio / np.sqrt(1 + ratio**2), np.float32)
        return Frame(self.step, {}, {"update.ratio": Vector(moved, np.ones(3, np.bool_))})

    def run(self, aim: float, steps: int) -> list[float]:
        """The learning rates of the steps."""
        pacer = Pacer(aim, lambda: self.lr, self.scale, lambda: min(1.0, max(0.01, self.schedule(self.step))))
        for self.step in range(steps):
            pacer(self.frame())
            self.used.append(self.lr)
        return self.used


@given(st.floats(1e-6, 1e3), st.floats(1e-2, 1e2))
def test_it_is_found_over_decades_and_the_first_step_is_small(lr: float, speed: float) -> None:
    used = Rate(lr, speed).run(0.01, STEPS + 5)
    assert used[0] == pytest.approx(START * lr)
    if START * lr * speed < 10:  # else nothing but the update is left of the weights
        assert used[1] == pytest.approx(0.01 / speed, rel=1e-3)
    assert used[-1] == pytest.approx(0.01 / speed, rel=1e-2)


@pytest.mark.parametrize(("speed", "after"), [(0.1, 0.01), (2.5, 0.01), (100.0, 0.03 / 100)])
def test_after_the_first_steps_it_is_lowered_where_weights_move_much_too_fast(
    speed: float, after: float
) -> None:
    rate = Rate(1.0, 1.0)
    pacer = Pacer(0.01, lambda: rate.lr, rate.scale, lambda: 1.0)
    for rate.step in range(STEPS + 40):
        rate.speed = 1.0 if rate.step <= STEPS else speed
        pacer(rate.frame())
        rate.used.append(rate.lr)
    assert rate.used[STEPS] == pytest.approx(0.01)
    assert rate.used[-1] == pytest.approx(after, rel=0.02)


def with_length(speed: Callable[[int], float], steps: int, schedule: Callable[[int], float]) -> list[float]:
    """How far the weights move at each step, where the length of the training is known."""
    rate, moved = Rate(1.0, 1.0, schedule), list[float]()
    pacer = Pacer(0.01, lambda: rate.lr, rate.scale, lambda: min(1.0, max(0.01, schedule(rate.step))), steps)
    for rate.step in range(steps):
        rate.speed = speed(rate.step - 1)
        pacer(rate.frame())
        rate.used.append(rate.lr)
        moved.append(rate.lr * speed(rate.step))
    return moved


def test_of_known_length_the_pace_is_kept_where_gradients_shrink_and_then_brought_down() -> None:
    moved = with_length(lambda step: 0.98 ** min(step, 100), 400, lambda _: 1.0)
    assert moved[150:200] == pytest.approx([0.01] * 50, rel=0.05)
    assert moved[300] == pytest.approx(0.005, rel=0.05)
    assert moved[-1] < 0.0002


def test_of_known_length_it_is_raised_tenfold_at_most() -> None:
    moved = with_length(lambda step: 1e-6 if step > 30 else 1.0, 400, lambda _: 1.0)
    assert max(moved[200:]) == pytest.approx(10 * 0.01 * 1e-6, rel=0.1)


def test_of_known_length_a_schedule_is_kept() -> None:
    moved = with_length(lambda _: 1.0, 200, lambda step: min(1.0, (step + 1) / 60))
    assert moved[30] == pytest.approx(0.01 * 31 / 60, rel=0.05)
    assert moved[90] == pytest.approx(0.01, rel=0.05)


def test_a_warm_up_stays_one() -> None:
    def rising(step: int) -> float:
        return min(1.0, (step + 1) / 50)

    used = Rate(1.0, 1.0, rising).run(0.01, 60)
    assert used[STEPS] == pytest.approx(0.01 * rising(STEPS), rel=0.02)
    assert used[-1] == pytest.approx(0.01, rel=0.02)


def test_a_schedule_that_goes_beyond_what_was_found_is_held_there() -> None:
    used = Rate(1.0, 1.0, lambda step: 300.0 if step >= 40 else 1.0).run(0.01, 60)
    assert used[39] == pytest.approx(0.01)
    assert max(used[40:]) == pytest.approx(0.01, rel=0.01)


def test_updates_that_cannot_be_seen_raise_it_no_further_than_what_was_asked_for() -> None:
    used = Rate(0.1, 0.0).run(0.01, STEPS)
    assert used[-1] == pytest.approx(0.1)
    assert all(after <= 10.001 * before for before, after in pairwise(used))


def test_a_skipped_step_changes_nothing() -> None:
    rate = Rate(1.0, 1.0)
    pacer = Pacer(0.01, lambda: rate.lr, rate.scale, lambda: 1.0)
    for rate.step in range(10):
        rate.speed = 0.0 if rate.step == 5 else 1.0
        pacer(rate.frame())
        rate.used.append(rate.lr)
    assert rate.used[2:] == pytest.approx([0.01] * 8)


@pytest.mark.parametrize("lr", [1e-6, 30.0])
@pytest.mark.parametrize("adam", [False, True])
def test_a_network_at_any_learning_rate_learns(lr: float, adam: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    y = (x @ torch.randn(20, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=lr)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step < 100 else 1000.0)
    token = CURRENT.set(Attempt(number=2, pace=0.01))
    try:
        with stepguard.watch(model, optimizer, scheduler=scheduler, run=None, console=None) as guard:
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
