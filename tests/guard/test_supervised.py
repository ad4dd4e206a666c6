"""Trainings under `supervise`: what a rule asks for is applied to the next attempt, with nobody watching."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import stepguard
from stepguard.errors import RestartRequested, StepguardWarning, TrainingHalted
from stepguard.recover.attempt import Attempt
from stepguard.recover.curve import BEHIND
from stepguard.series.runfile import RunFile

REMEDY = "{lr: 0.5, init: kaiming, clip: 1.0, seed: 3}"


def at_step(step: int, action: str, more: str = "") -> str:
    return f"- {{name: r, when: step == {step} and loss > 0, action: {action}{more}}}"


class Supervised:
    """A training function over quiet guards, and what each attempt looked like."""

    def __init__(self, training: Any, **options: Any) -> None:
        self.make, self.options = training, options
        self.attempts: list[Attempt] = []
        self.made: list[Any] = []
        self.guards: list[stepguard.Guard] = []
        self.steps: list[int] = []

    def __call__(self, attempt: Attempt) -> str:
        guarded = self.make()
        guarded.before = [p.detach().clone() for p in guarded.model.parameters()]
        torch.manual_seed(attempt.seed)
        quiet: dict[str, Any] = {"run": None, "console": None, "on_error": "raise"}
        guard = stepguard.watch(guarded.model, guarded.optimizer, **{**quiet, **self.options})
        guard.subscribe(lambda _: self.count())
        self.attempts.append(attempt)
        self.made.append(guarded)
        self.guards.append(guard)
        self.steps.append(0)
        guarded.run(6, guard.step)
        return f"attempt {attempt.number}"

    def count(self) -> None:
        self.steps[-1] += 1


def test_the_remedy_is_applied_to_the_next_attempt(training, rules) -> None:
    ladder = f"[{{restart: {REMEDY}}}, warn]"
    train = Supervised(training, rules=rules(at_step(2, ladder)))
    assert stepguard.supervise(train, seed=7) == "attempt 2"
    assert train.steps == [3, 6]
    first, second = train.made
    assert first.optimizer.param_groups[0]["lr"] == 0.05
    assert second.optimizer.param_groups[0]["lr"] == 0.025
    assert train.attempts[1] == Attempt(
        number=2,
        last=False,
        seed=10,
        lr_scale=0.5,
        init="kaiming",
        clip=1.0,
        standings=train.attempts[1].standings,
        past=train.attempts[1].past,
        guards=train.attempts[1].guards,
    )


def test_without_a_remedy_the_model_of_an_attempt_is_left_as_the_code_made_it(training, rules) -> None:
    train = Supervised(training, rules=rules(at_step(0, "[{restart: {lr: 0.5}}, warn]")))
    stepguard.supervise(train)
    unmoved = [
        all(torch.equal(p, b) for p, b in zip(made.model.parameters(), made.before, strict=True))
        for made in train.made
    ]
    assert unmoved == [True, False], "the first attempt ended before its first step, the second trained"


def test_the_initialisation_happens_when_the_guard_is_made(training, rules) -> None:
    file = rules(at_step(0, "[{restart: {init: kaiming}}, halt]"))
    train = Supervised(training, rules=file)
    with pytest.raises(TrainingHalted):
        stepguard.supervise(train)
    _, second = train.made
    changed = [not torch.equal(p, b) for p, b in zip(second.model.parameters(), second.before, strict=True)]
    names = [name for name, _ in second.model.named_parameters()]
    assert dict(zip(names, changed, strict=True)) == {
        "0.weight": True,
        "0.bias": True,
        "1.weight": False,
        "1.bias": False,
        "4.weight": True,
    }


def test_gradients_are_clipped_at_every_step_of_an_attempt_that_clips(training, rules) -> None:
    moved: list[float] = []

    def train(attempt: Attempt) -> None:
        guarded = training(lambda p: torch.optim.SGD(p, lr=1.0))
        guarded.factors = dict.fromkeys(range(6), 50.0)
        file = rules(at_step(1, "[{restart: {clip: 0.25}}, warn]"))
        with stepguard.watch(guarded.model, guarded.optimizer, rules=file, run=None, console=None) as guard:
            for _ in range(3):
                before = torch.cat([p.detach().flatten().clone() for p in guarded.model.parameters()])
                guarded.run(1, guard.step)
                after = torch.cat([p.detach().flatten() for p in guarded.model.parameters()])
                if attempt.number == 2:
                    moved.append(float((after - before).norm()))

    stepguard.supervise(train)
    assert moved == pytest.approx([0.25] * 3, rel=1e-3)


def test_the_frames_show_the_gradients_before_they_are_clipped(training, rules) -> None:
    norms: list[float] = []

    def train(attempt: Attempt) -> None:
        attempt.clip = 1e-3
        guarded = training()
        file = rules("- {name: never, when: loss < -1e30}")
        with stepguard.watch(guarded.model, guarded.optimizer, rules=file, run=None, console=None) as guard:
            guard.subscribe(lambda observation: norms.append(observation.frame.scalars["grad_norm"]))
            guarded.run(3, guard.step)

    stepguard.supervise(train)
    assert all(norm > 0.1 for norm in norms)


def test_ladders_go_on_over_attempts(training, rules) -> None:
    ladder = "[{restart: {lr: 0.5, times: 2}}, halt]"
    train = Supervised(training, rules=rules(at_step(1, ladder)))
    with pytest.raises(TrainingHalted) as raised:
        stepguard.supervise(train, attempts=9)
    assert len(train.attempts) == 3
    assert [attempt.lr_scale for attempt in train.attempts] == [1, 0.5, 0.25]
    assert raised.value.rule == "r"


def test_when_the_attempts_are_used_up_the_request_is_raised_and_all_is_closed(training, rules) -> None:
    train = Supervised(training, rules=rules(at_step(1, "{restart: {lr: 0.5}}")))
    with pytest.raises(RestartRequested) as raised:
        stepguard.supervise(train, attempts=3)
    assert raised.value.remedy == {"lr": 0.5}
    assert [attempt.last for attempt in train.attempts] == [False, False, True]
    assert all(made.hooks() == 0 for made in train.made)


def test_restart_auto_tries_one_thing_after_the_other(training, rules) -> None:
    train = Supervised(training, rules=rules(at_step(1, "restart")))
    with pytest.raises(RestartRequested):
        stepguard.supervise(train, attempts=4)
    assert [(attempt.init, attempt.clip) for attempt in train.attempts] == [
        (None, None),
        (None, 1.0),
        ("lsuv", 1.0),
        ("kaiming", 1.0),
    ]


def test_a_guard_that_was_never_closed_is_closed_with_its_attempt(training, rules, tmp_path) -> None:
    train = Supervised(training, rules=rules("- {name: never, when: loss < -1e30}"), run=tmp_path)
    stepguard.supervise(train)
    assert train.made[0].hooks() == 0
    assert recorded(train) == ["completed"]


def recorded(train: Supervised) -> list[str | None]:
    path = train.guards[0].run_path
    assert path is not None
    with RunFile(path) as run:
        return [attempt.outcome for attempt in run.attempts()]


def test_all_attempts_lie_in_one_run_file(training, rules, tmp_path) -> None:
    ladder = "[{restart: {lr: 0.5}}, {restart: {init: lsuv}}, warn]"
    train = Supervised(training, rules=rules(at_step(1, ladder)), run=tmp_path)
    stepguard.supervise(train, seed=4)
    assert recorded(train) == ["restart: r", "restart: r", "completed"]
    assert len(list(tmp_path.glob("*.sqlite"))) == 1
    with RunFile(train.guards[0].run_path) as run:
        infos = [attempt.info for attempt in run.attempts()]
        steps = [len(list(run.frames(attempt.number))) for attempt in run.attempts()]
    assert [(info["seed"], info["lr_scale"], info["init"]) for info in infos] == [
        (4, 1.0, None),
        (4, 0.5, None),
        (4, 0.5, "lsuv"),
    ]
    assert steps == [2, 2, 6]


def test_a_bug_in_the_training_closes_the_guard_and_is_raised(training, rules, tmp_path) -> None:
    class Buggy(Supervised):
        def count(self) -> None:
            super().count()
            if self.steps[-1] == 2:
                self.made[-1].batches = []

    train = Buggy(training, rules=rules("- {name: never, when: loss < -1e30}"), run=tmp_path)
    with pytest.raises(ZeroDivisionError):
        stepguard.supervise(train)
    assert train.made[0].hooks() == 0
    (outcome,) = recorded(train)
    assert outcome is not None
    assert outcome.startswith("error: ZeroDivisionError")


def test_one_summary_at_the_end_tells_of_all_attempts(training, rules) -> None:
    out = io.StringIO()
    ladder = "[{restart: {lr: 0.5}}, warn]"
    train = Supervised(training, rules=rules(at_step(1, ladder)), console=Console(file=out, width=200))
    stepguard.supervise(train)
    lines = [line for line in out.getvalue().splitlines() if "attempt " in line]
    assert [line for line in lines if "attempt 1: 2 steps, restart: r" in line]
    assert [line for line in lines if "attempt 2 (" in line and "completed" in line]
    assert sum("restart: r" in line for line in lines) == 1


def test_one_summary_also_where_no_attempt_is_left(training, rules) -> None:
    out = io.StringIO()
    file = rules(at_step(1, "{restart: {lr: 0.5}}"))
    train = Supervised(training, rules=file, console=Console(file=out, width=200))
    with pytest.raises(RestartRequested):
        stepguard.supervise(train, attempts=2)
    assert sum("2 steps, restart: r" in line for line in out.getvalue().splitlines()) == 2


def test_outside_of_supervise_a_restart_is_raised_to_the_caller(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(at_step(1, f"{{restart: {REMEDY}}}")))
    with pytest.raises(RestartRequested) as raised:
        guarded.run(3, session.guard.step)
    assert raised.value.remedy == {"lr": 0.5, "init": "kaiming", "clip": 1.0, "seed": 3}


def test_a_supervised_training_inside_another_keeps_to_its_own_attempt(training, rules) -> None:
    inner = Supervised(training, rules=rules(at_step(1, "[{restart: {lr: 0.5}}, warn]")))
    outer = Supervised(training, rules=rules("- {name: never, when: loss < -1e30}"))

    def train(attempt: Attempt) -> str:
        assert stepguard.supervise(inner) == "attempt 2"
        return outer(attempt)

    assert stepguard.supervise(train) == "attempt 1"
    assert outer.attempts[0].lr_scale == 1.0
    assert outer.made[0].optimizer.param_groups[0]["lr"] == 0.05


def test_an_attempt_that_never_makes_its_guard_is_told_of(training, rules) -> None:
    first = Supervised(training, rules=rules(at_step(1, "{restart: {lr: 0.5}}")))
    with pytest.warns(
        StepguardWarning, match="attempt 2 ended without a guard, so its remedy was not applied"
    ):
        stepguard.supervise(lambda attempt: first(attempt) if attempt.number == 1 else "done")


class Deep(nn.Module):
    """A network that as it comes cannot learn: its weights are so small that the signal dies on the way."""

    def __init__(self) -> None:
        super().__init__()
        widths = [20, *[48] * 10, 4]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("init", ["kaiming", "lsuv"])
def test_a_network_that_cannot_learn_is_saved_by_its_initialisation(rules, init: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 20, generator=generator)
    y = (x @ torch.randn(20, 4, generator=generator)).argmax(1)
    file = rules(
        "- name: faint\n"
        "  when: last(act.variation) < 0.01\n"
        "  for: 5\n"
        f"  action: [{{restart: {{init: {init}}}}}, halt]"
    )
    losses: dict[int, float] = {}

    def train(attempt: Attempt) -> float:
        model = Deep()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with stepguard.watch(model, optimizer, rules=file, run=None, console=None) as guard:
            for step in range(150):
                batch = slice(64 * (step % 8), 64 * (step % 8) + 64)
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                losses[attempt.number] = float(loss.detach())
                guard.step(loss)
        return float((model(x).argmax(1) == y).float().mean())

    accuracy = stepguard.supervise(train)
    assert list(losses) == [1, 2]
    assert losses[1] == pytest.approx(math.log(4), abs=0.05), "the first attempt has learned nothing"
    assert accuracy > 0.8


LOSING = """
- name: r
  when: step == 3 and loss > 0
  active: ..4
  action: [{restart: {times: 1}}, warn]
"""


def test_challengers_follow_an_attempt_whose_pace_was_held_and_the_best_is_kept(rules, tmp_path) -> None:
    """Whoever returns did better than all before; whoever does worse never comes to what follows its loop."""
    file = rules(LOSING.strip())
    ended: list[tuple[int, float]] = []
    paces: list[float | None] = []

    def train(attempt: Attempt) -> int:
        x = torch.randn(256, 10)
        y = x @ torch.randn(10, 1) + 2.0 * torch.randn(256, 1)  # the noise leaves room for doing better
        model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        paces.append(attempt.pace)
        with stepguard.watch(
            model, optimizer, rules=file, run=tmp_path, console=None, total_steps=120, on_error="raise"
        ) as guard:
            for _ in range(120):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                guard.step(loss)
        ended.append((attempt.number, float(loss.detach())))
        return attempt.number

    kept = stepguard.supervise(train, attempts=6, budget=12.0)
    assert paces == [None, 0.01, 0.03, 0.09, 0.27]
    assert kept == ended[-1][0]
    losses = [loss for _, loss in ended]
    assert losses == sorted(losses, reverse=True)
    (path,) = tmp_path.glob("*.sqlite")
    with RunFile(path) as run:
        outcomes = {attempt.number: attempt.outcome for attempt in run.attempts()}
    assert {number for number, outcome in outcomes.items() if outcome == "completed"} == {n for n, _ in ended}
    assert {outcome for number, outcome in outcomes.items() if number > 1} <= {"completed", f"kept: {BEHIND}"}
    assert len(ended) < 5, "one of them did worse"


def test_a_budget_of_one_takes_the_first_attempt_that_ends(training, rules) -> None:
    train = Supervised(training, rules=rules(at_step(2, "[{restart: {times: 1}}, warn]")))
    assert stepguard.supervise(train, attempts=9, budget=1.0) == "attempt 2"
