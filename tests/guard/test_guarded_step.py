"""Every way of taking a step is guarded, and the guard changes nothing that it does not decide to change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stepguard.errors import TrainingHalted

NEVER = "- {name: never, when: loss < -1e30, action: halt}"
SKIP = "- {name: nan, when: nonfinite(loss), action: skip}"


class Step:
    """One way of taking a step, guarded or bare."""

    scaler: torch.amp.GradScaler | None = None

    def options(self) -> dict[str, Any]:
        return {}

    def take(self, training: Any, guard: Any) -> None:
        training.run(1, None if guard is None else guard.step)


class PlainStep(Step):
    """`optimizer.step()`, the loss given by `guard.loss`."""

    def take(self, training: Any, guard: Any) -> None:
        def step(loss: Tensor) -> None:
            if guard is not None:
                guard.loss(loss)
            training.optimizer.step()

        training.run(1, step)


class ClosureStep(Step):
    """`optimizer.step(closure)`: the guard takes the loss from the closure."""

    def take(self, training: Any, guard: Any) -> None:
        def closure() -> Tensor:
            training.optimizer.zero_grad()
            loss = training.loss()
            loss.backward()
            return loss

        training.optimizer.step(closure)


class ScaledStep(Step):
    """`guard.step` with a GradScaler."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def options(self) -> dict[str, Any]:
        return {"scaler": self.scaler}

    def take(self, training: Any, guard: Any) -> None:
        training.optimizer.zero_grad()
        loss = training.loss()
        self.scaler.scale(loss).backward()
        self.step(training, guard, loss)

    def step(self, training: Any, guard: Any, loss: Tensor) -> None:
        if guard is None:
            self.scaler.step(training.optimizer)
            self.scaler.update()
        else:
            guard.step(loss)


class ScalerStep(ScaledStep):
    """`scaler.step(optimizer)`, the loss given by `guard.loss`."""

    def step(self, training: Any, guard: Any, loss: Tensor) -> None:
        if guard is not None:
            guard.loss(loss)
        self.scaler.step(training.optimizer)
        self.scaler.update()


WAYS: list[type[Step]] = [Step, PlainStep, ClosureStep, ScaledStep, ScalerStep]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_training_in_which_nothing_fires_is_the_bare_one(training, watched, rules, way, name: str) -> None:
    guarded, bare = training(OPTIMIZERS[name]), training(OPTIMIZERS[name])
    ours, plain = way(), way()
    session = watched(guarded, rules=rules(NEVER), **ours.options())
    for _ in range(25):
        ours.take(guarded, session.guard)
    state = guarded.state()
    torch.manual_seed(1)
    for _ in range(25):
        plain.take(bare, None)
    assert state == bare.state()
    assert len(session.seen) == 25


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_frames_hold_the_losses_and_unscaled_gradients(training, watched, rules, way, name: str) -> None:
    guarded, bare = training(OPTIMIZERS[name]), training(OPTIMIZERS[name])
    how = way()
    session = watched(guarded, rules=rules(NEVER), every=1, **how.options())
    for _ in range(5):
        how.take(guarded, session.guard)
    losses: list[float] = []
    norms: list[float] = []

    def step(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        grads = [parameter.grad.norm() for parameter in bare.model.parameters()]
        norms.append(float(torch.stack(grads).norm()))
        bare.optimizer.step()

    torch.manual_seed(1)
    bare.run(5, step)
    assert session.scalars("loss") == pytest.approx(losses, rel=1e-5)
    assert session.scalars("grad_norm") == pytest.approx(norms, rel=1e-4)
    assert [observation.frame.step for observation in session.seen] == list(range(5))
    assert session.scalars("lr") == [guarded.optimizer.param_groups[0]["lr"]] * 5
    scale = [2.0**16] * 5 if how.options() else [None] * 5
    assert session.scalars("loss_scale") == scale


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_bad_step_is_skipped_whichever_way_it_is_taken(training, watched, rules, way, name: str) -> None:
    guarded = training(OPTIMIZERS[name])
    guarded.factors = {2: math.nan, 5: math.inf}
    how = way()
    session = watched(guarded, rules=rules(SKIP), **how.options())
    kept: list[bool] = []
    for _ in range(8):
        before = {key: value for key, value in guarded.state().items() if not _running(key)}
        how.take(guarded, session.guard)
        after = guarded.state()
        kept.append(all(after.get(key) == value for key, value in before.items()))
    assert kept == [step in (2, 5) for step in range(8)]
    assert all(torch.isfinite(parameter).all() for parameter in guarded.model.parameters())
    if way is not ScalerStep:  # there the scaler leaves the step out, and nobody asks the guard
        assert session.decided() == [(2, "nan", "skip"), (5, "nan", "skip")]


def _running(key: str) -> bool:
    """What the forward pass moves: batch norm's statistics, and the generator that dropout draws from."""
    return "running" in key or "num_batches" in key or key == "/2"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_overflow_is_the_scalers_own_business(training, watched, rules, name: str) -> None:
    guarded, how = training(OPTIMIZERS[name]), ScaledStep()
    guarded.factors = {1: 1e36}  # finite, but not when it is scaled
    grads = "- {name: grad, when: any(grad.nonfinite > 0), action: halt}\n"
    session = watched(guarded, rules=rules(grads + SKIP), every=1, **how.options())
    for _ in range(3):
        how.take(guarded, session.guard)
    assert session.guard.alerts == []
    assert len(session.seen) == 3
    assert session.scalars("loss")[1] > 1e35
    assert session.scalars("loss_scale") == [2.0**16, 2.0**15, 2.0**15]


@pytest.mark.parametrize("name", ["SGD", "AdamW fused"])
def test_an_overflow_counts_as_a_step_and_leaves_no_trace_in_the_next(
    training, watched, rules, name: str
) -> None:
    guarded, how = training(OPTIMIZERS[name]), ScaledStep()
    guarded.factors = {1: 1e36}
    session = watched(guarded, rules=rules(NEVER), every=1, **how.options())
    for _ in range(3):
        how.take(guarded, session.guard)
    assert [observation.frame.step for observation in session.seen] == [0, 1, 2]
    frame = session.seen[2].frame
    assert all(bool((vector.values[vector.known] < 1e6).all()) for vector in frame.vectors.values())


def test_the_loss_may_be_left_out(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER))
    guarded.run(3)
    assert session.scalars("loss") == [None] * 3
    assert session.scalars("grad_norm") != [None] * 3


def test_a_loss_is_used_for_one_step_only(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER))
    guarded.run(1, session.guard.step)
    guarded.run(1)
    first, second = session.scalars("loss")
    assert first is not None
    assert second is None


@pytest.mark.parametrize(("every", "run"), [(1, False), (10, False), ("auto", True)])
def test_measuring_changes_nothing_at_any_cadence(training, watched, tmp_path, every, run: bool) -> None:
    guarded, bare = training(), training()
    folder = tmp_path / "runs" if run else None
    session = watched(guarded, rules="default", every=every, run=folder)
    guarded.run(230, session.guard.step)
    state = guarded.state()
    torch.manual_seed(1)
    bare.run(230)
    assert state == bare.state()
    assert session.guard.decisions == []


MEASURED = {
    1: set(range(230)),
    10: set(range(0, 230, 10)),
    7: set(range(0, 230, 7)),
    "auto": set(range(200)) | {200, 210, 220},
}


@pytest.mark.parametrize("every", MEASURED)
def test_at_which_steps_everything_is_measured(training, watched, rules, every) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), every=every)
    guarded.run(230, session.guard.step)
    frames = [observation.frame for observation in session.seen]
    assert {frame.step for frame in frames if "act.std" in frame.vectors} == MEASURED[every]
    assert {frame.step for frame in frames if frame.hist is not None} == MEASURED[every]
    assert {frame.step for frame in frames if "weight.norm" in frame.vectors} == MEASURED[every]
    assert all("loss" in frame.scalars and "grad.nonfinite" in frame.vectors for frame in frames)
    moved = {frame.step for frame in frames if "update.ratio" in frame.vectors}
    assert moved == MEASURED[every] - {0}, "at each measured step, how far the last update went"


def test_while_something_is_pending_every_step_is_measured(training, watched, rules) -> None:
    guarded = training()
    slow = "- {name: slow, when: step >= 214 and step < 217, for: 2}"
    session = watched(guarded, rules=rules(slow))
    guarded.run(230, session.guard.step)
    measured = {o.frame.step for o in session.seen if "act.std" in o.frame.vectors and o.frame.step >= 200}
    assert measured == {200, 210, 215, 216, 217, 220}


@pytest.mark.parametrize(
    "action", ["skip", "{lower_lr: {by: 0.1}}", "{restart: {lr: 0.1, init: kaiming}}", "restart", "halt"]
)
def test_a_dry_run_decides_and_does_nothing(training, watched, rules, action: str) -> None:
    guarded, bare = training(), training()
    text = f"- {{name: always, when: loss > 0, settle: 5, action: {action}}}"
    session = watched(guarded, rules=rules(text), dry_run=True)
    guarded.run(20, session.guard.step)
    state = guarded.state()
    torch.manual_seed(1)
    bare.run(20)
    assert state == bare.state()
    expected = range(20) if action == "skip" else range(0, 20, 5)
    assert [decision.step for decision in session.guard.decisions] == list(expected)
    assert all(decision.dry_run for decision in session.guard.decisions)


def test_without_dry_run_the_same_rule_acts(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules("- {name: always, when: loss > 0, action: halt}"))
    with pytest.raises(TrainingHalted):
        guarded.run(1, session.guard.step)
    assert [decision.dry_run for decision in session.guard.decisions] == [False]


def test_lower_lr_scales_every_group_and_the_schedule(training, watched, rules) -> None:
    def two_groups(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.2}])

    guarded = training(two_groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(guarded.optimizer, lambda step: 1 / (1 + step))
    text = "- {name: once, when: step == 2 and loss > 0, action: {lower_lr: {by: 0.5}}}"
    session = watched(guarded, rules=rules(text), scheduler=scheduler)
    rates: list[list[float]] = []
    for _ in range(5):
        guarded.run(1, session.guard.step)
        rates.append([group["lr"] for group in guarded.optimizer.param_groups])
        scheduler.step()
    for step, found in enumerate(rates):
        factor = (0.5 if step >= 2 else 1.0) / (1 + step)
        assert found == pytest.approx([0.1 * factor, 0.2 * factor])
    assert session.scalars("lr") == pytest.approx([0.1, 0.05, 0.1 / 3, 0.0125, 0.01])
