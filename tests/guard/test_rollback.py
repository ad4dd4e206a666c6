"""A rollback puts everything back bit for bit, in place, and the data goes on."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stepguard.cli import main
from stepguard.errors import StepguardWarning
from stepguard.recover import certifying
from stepguard.report.recorded import happenings
from stepguard.report.replay import replay
from stepguard.series.runfile import RunFile

QUIET = certifying.LEAST
BACK = "- {{name: back, when: {when}, settle: 5, action: [{{rollback: {lr}}}, warn]}}"
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
}


def back(when: str, lr: str = "{}") -> str:
    return BACK.format(when=when, lr=lr)


def everything(guarded: Any) -> dict[str, Any]:
    """The training's state and every generator."""
    numpy = np.random.get_state(legacy=True)
    return {**guarded.state(), "python": random.getstate(), "numpy": (numpy[1].tobytes(), numpy[2:])}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_state_of_that_step_is_back_bit_for_bit(training, watched, rules, make) -> None:
    guarded = training(make)
    at = QUIET + 7
    session = watched(guarded, rules=rules(back(f"step == {at} and loss > 0")))
    guarded.run(1, session.guard.step)
    then = everything(guarded)
    guarded.run(at - 1, session.guard.step)
    random.random()
    np.random.rand()
    assert everything(guarded) != then
    guarded.run(1, session.guard.step)
    assert everything(guarded) == then
    (decision,) = session.guard.decisions
    assert (decision.kind, decision.step, decision.to) == ("rollback", at, 1)
    guarded.run(5, session.guard.step)
    assert [observation.frame.step for observation in session.seen][-3:] == [at + 3, at + 4, at + 5]
    assert guarded.now == at + 6


def test_the_steps_after_it_are_those_of_a_training_that_was_there(training, watched, rules) -> None:
    """The batches go on, so they are those after the fault, with the weights before it."""
    guarded = training()
    at = QUIET + 7
    session = watched(guarded, rules=rules(back(f"step == {at} and loss > 0")))
    guarded.run(at + 11, session.guard.step)
    found = guarded.state()
    other = training()
    other.run(1)
    other.now = at + 1
    other.run(10)
    assert found == other.state()


def test_scheduler_and_scaler_go_back_too(training, watched, rules) -> None:
    guarded = training()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(guarded.optimizer, [10, 20, 30], gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=15)
    at = QUIET + 7
    session = watched(
        guarded, rules=rules(back(f"step == {at} and loss > 0")), scheduler=scheduler, scaler=scaler
    )

    def run(steps: int) -> None:
        for _ in range(steps):
            guarded.optimizer.zero_grad()
            loss = guarded.loss()
            scaler.scale(loss).backward()
            session.guard.step(loss)
            scheduler.step()

    run(1)
    then = scheduler.state_dict().copy(), dict(scaler.state_dict()), guarded.state()
    run(at - 1)
    assert scaler.state_dict()["scale"] > then[1]["scale"]
    guarded.optimizer.zero_grad()
    loss = guarded.loss()
    scaler.scale(loss).backward()
    session.guard.step(loss)
    assert (scheduler.state_dict(), scaler.state_dict(), guarded.state()) == then
    run(3)
    assert guarded.optimizer.param_groups[0]["lr"] == 0.05


def test_each_rollback_lowers_the_learning_rate_further(training, watched, rules) -> None:
    guarded = training()
    when = f"step >= {QUIET + 5} and loss > 0"
    text = f"- {{name: b, when: '{when}', settle: 5, action: [{{rollback: {{lr: 0.5, times: 3}}}}, warn]}}"
    session = watched(guarded, rules=rules(text))
    guarded.run(QUIET + 30, session.guard.step)
    steps = [QUIET + 5, QUIET + 10, QUIET + 15]
    assert [(d.step, d.to) for d in session.guard.decisions if d.kind == "rollback"] == [
        (step, 1) for step in steps
    ]
    assert guarded.optimizer.param_groups[0]["lr"] == 0.05 / 8


def test_what_lower_lr_did_lasts_through_a_rollback(training, watched, rules) -> None:
    guarded = training()
    text = "- {name: low, when: step == 40 and loss > 0, action: {lower_lr: {by: 0.1}}}\n" + back(
        f"step == {2 * QUIET + 60} and loss > 0", "{lr: 0.5}"
    )
    session = watched(guarded, rules=rules(text))
    guarded.run(2 * QUIET + 61, session.guard.step)
    assert session.guard.decisions[-1].to is not None
    assert guarded.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1 * 0.5)


def test_an_alert_spoils_the_snapshots_that_are_not_certified_yet(training, watched, rules) -> None:
    guarded = training()
    bad = 1 + QUIET + 20
    text = f"- {{name: s, when: step == {bad} and loss > 0, action: skip}}\n" + back(
        f"step == {bad + QUIET // 2} and loss > 0"
    )
    session = watched(guarded, rules=rules(text))
    guarded.run(bad + QUIET, session.guard.step)
    assert session.guard.decisions[-1].to == 1, "that of step 51 was taken, but an alert fired 20 steps later"


def test_a_snapshot_with_a_tensor_that_is_not_finite_is_refused(training, watched, rules) -> None:
    guarded = training()
    bad = 1 + QUIET
    session = watched(
        guarded, rules=rules(back(f"step == {2 * QUIET + 20} and lr > 0")), on_error="warn", every=1
    )
    guarded.run(bad, session.guard.step)
    with torch.no_grad():
        guarded.model[4].weight[0, 0] = math.nan
    with pytest.warns(StepguardWarning, match=rf"step {bad} is refused: model/4.weight is not finite"):
        guarded.run(2 * QUIET + 21 - bad, session.guard.step)
    assert session.guard.decisions[-1].to == 1
    assert bool(guarded.model[4].weight.isfinite().all())


def test_a_mask_of_infinities_and_buffers_that_are_not_saved(training, watched, rules) -> None:
    def count(model: nn.Module, _: object) -> None:
        model.count.add_(1)

    def net() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 3))
        model.register_buffer("mask", torch.full((2,), -math.inf))
        model.register_buffer("count", torch.zeros(1), persistent=False)
        model.register_forward_pre_hook(count)
        return model

    guarded = training(net=net)
    at = QUIET + 7
    session = watched(guarded, rules=rules(back(f"step == {at} and loss > 0")))
    guarded.run(at + 1, session.guard.step)
    assert session.guard.decisions[0].to == 1
    assert float(guarded.model.count) == 1.0


def test_tied_weights_stay_tied_and_a_kept_part_goes_back(training, watched, rules) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(x)))

    guarded = training(net=Tied)
    average = nn.Linear(2, 2)
    at = QUIET + 7
    session = watched(guarded, rules=rules(back(f"step == {at} and loss > 0")))
    session.guard.keep(average=average)
    before = average.weight.detach().clone()
    guarded.run(at, session.guard.step)
    with torch.no_grad():
        average.weight.zero_()
    guarded.run(1, session.guard.step)
    assert guarded.model.b.weight is guarded.model.a.weight
    assert torch.equal(average.weight, before)


def test_in_a_dry_run_nothing_goes_back(training, watched, rules) -> None:
    guarded = training()
    at = QUIET + 7
    session = watched(guarded, rules=rules(back(f"step == {at} and loss > 0")), dry_run=True)
    guarded.run(at + 3, session.guard.step)
    found = guarded.state()
    other = training()
    other.run(at + 3)
    assert found == other.state()
    assert session.guard.decisions[0].dry_run


SPIKES = """
- name: spike
  when: spike(loss, 20, by=8)
  settle: 10
  action: [{rollback: {lr: 0.9, times: 2}}, {lower_lr: {by: 0.9}}, warn]
- {name: high, when: "mean(loss, 20) > 0", for: 7}
- {name: drift, when: "growth(act.std, 15) > 1.02", for: 3, keep: 4}
"""


@pytest.mark.parametrize("every", [1, "auto"])
def test_the_replay_goes_back_as_the_live_run_did(
    training, watched, rules, tmp_path: Path, every: Any
) -> None:
    guarded = training(lambda p: torch.optim.SGD(p, lr=0.02))
    guarded.factors = dict.fromkeys((30, 100, 101, 140, 141, 220), 100.0)
    session = watched(guarded, rules=rules(SPIKES), run=tmp_path / "runs", every=every)
    guarded.run(300, session.guard.step)
    session.guard.close()
    kinds = [decision.kind for decision in session.guard.decisions]
    assert kinds.count("rollback") >= 2
    assert "lower_lr" in kinds, "at step 30 there is no snapshot yet: the next rung is taken"
    (path,) = (tmp_path / "runs").glob("*.sqlite")
    with RunFile(path) as run:
        (record,) = run.attempts()
        live = happenings((event.kind, event.data) for event in run.events(1))
        again = replay(run, record)
    assert repr(again.changes) == repr(live.changes)
    assert repr(again.decisions) == repr(live.decisions)
    assert main(["replay", str(path)]) == 0
