"""Several guards at once, and one that is closed from inside or sees a part of the model only."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from stepguard.errors import StepguardWarning

NEVER = "- {name: never, when: loss < -1e30, action: halt}"


def test_the_layers_can_be_narrowed(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), layers=["ReLU", "4"])
    guarded.run(1, session.guard.step)
    assert [layer.name for layer in session.seen[0].layers] == ["2", "4"]


def test_two_guards_watch_two_trainings_at_once(training, watched, rules) -> None:
    one, other = training(), training()
    first = watched(one, rules=rules("- {name: stop, when: step == 1 and loss > 0, action: skip}"))
    second = watched(other, rules=rules(NEVER))
    for _ in range(3):
        one.run(1, first.guard.step)
        other.run(1, second.guard.step)
    assert (first.decided(), second.decided()) == ([(1, "stop", "skip")], [])
    assert len(first.seen) == len(second.seen) == 3


def test_each_line_of_two_guards_says_whose_it_is(training, watched, rules) -> None:
    class Critic(nn.Sequential):
        pass

    out = io.StringIO()
    trainings = [training(), training(net=lambda: Critic(nn.Linear(8, 3)))]
    file = rules("- {name: hot, when: step == 1 and loss > 0}")
    guards = [watched(each, rules=file, console=Console(file=out, width=200)).guard for each in trainings]
    for _ in range(3):
        for each, guard in zip(trainings, guards, strict=True):
            each.run(1, guard.step)
    for guard in guards:
        guard.close()
    lines = out.getvalue().splitlines()
    fired = [line.split(":")[0] for line in lines if "step 1: warning: hot" in line]
    assert fired == ["stepguard[Sequential]", "stepguard[Critic]"]
    assert all(line.startswith(("stepguard[Sequential]: ", "stepguard[Critic]: ")) for line in lines)


def test_a_guard_may_be_closed_by_a_subscriber(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER))
    session.guard.subscribe(lambda observation: observation.frame.step == 2 and session.guard.close())
    with pytest.warns(StepguardWarning, match=r"step\(\) after close\(\)"):
        guarded.run(5, session.guard.step)
    assert len(session.seen) == 3
    assert guarded.hooks() == 0


def test_several_optimizers_of_one_model_each_have_a_guard(watched, rules) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]

    class Part:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.model, self.optimizer = model, optimizer

    sessions = [watched(Part(optimizer), rules=rules(NEVER)) for optimizer in optimizers]
    for _ in range(3):
        loss = model(torch.randn(8, 4)).square().mean()
        model.zero_grad()
        loss.backward()
        for session in sessions:
            session.guard.step(loss)
    assert [len(session.seen) for session in sessions] == [3, 3]
