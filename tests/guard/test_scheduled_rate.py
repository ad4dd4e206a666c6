"""`lr_share`: how much of the learning rate a schedule lets through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

LATE = "- {name: late, when: lr_share < 0.2 and loss > 0, action: warn}"


def _one_cycle(optimizer: Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=0.4, total_steps=20, pct_start=0.5)


def _warmed_up(optimizer: Optimizer) -> LRScheduler:
    warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=4)
    return SequentialLR(optimizer, [warm_up, LinearLR(optimizer, 1.0, 0.5, total_iters=4)], [4])


@pytest.mark.parametrize(
    ("make", "shares"),
    [
        (lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)), [1, 1 / 2, 1 / 3, 1 / 4]),
        (_warmed_up, [0.1, 0.325, 0.55, 0.775, 1.0, 0.875]),
        (_one_cycle, [1 / 25]),
    ],
    ids=["lambda", "warm-up", "one cycle"],
)
def test_it_is_the_share_of_what_the_scheduler_reckons_from(
    training, watched, rules, make: Callable[[Optimizer], LRScheduler], shares: list[float]
) -> None:
    guarded = training()
    scheduler = make(guarded.optimizer)
    session = watched(guarded, rules=rules(LATE), scheduler=scheduler)
    for _ in range(20):
        guarded.run(1, session.guard.step)
        scheduler.step()
        if scheduler.last_epoch == 19:
            break
    found = session.scalars("lr_share")
    assert found[: len(shares)] == pytest.approx(shares, rel=1e-6)
    assert max(found) == pytest.approx(1.0, rel=0.02)


def test_without_a_scheduler_there_is_none(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(LATE))
    guarded.run(3, session.guard.step)
    assert session.scalars("lr_share") == [None] * 3
    assert session.guard.alerts == []


def test_a_lower_rate_scales_what_it_is_a_share_of(training, watched, rules) -> None:
    guarded = training()
    scheduler = LambdaLR(guarded.optimizer, lambda step: 1.0)
    text = "- {name: once, when: step == 2 and loss > 0, action: {lower_lr: {by: 0.1}}}"
    session = watched(guarded, rules=rules(text), scheduler=scheduler)
    guarded.run(4, session.guard.step)
    first, *_, last = session.scalars("lr")
    assert last == pytest.approx(0.1 * first)
    assert session.scalars("lr_share") == pytest.approx([1.0] * 4)
