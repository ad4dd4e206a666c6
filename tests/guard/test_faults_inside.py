"""Whatever goes wrong inside the guard is reported once, and the training goes on as if it were bare."""

from __future__ import annotations

import io
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from stepguard.collect.collector import Collector
from stepguard.engine import Engine
from stepguard.errors import StepguardWarning, TrainingHalted
from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Observation
from stepguard.recover.supervise import supervise
from stepguard.signals import Vector

NEVER = "- {name: never, when: loss < -1e30, action: halt}"
HALT = "- {name: enough, when: step == 3 and loss > 0, action: halt}"


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    with pytest.warns(StepguardWarning, match=match) as said:
        yield
    assert len(said) == 1


def bare(training: Any, steps: int) -> dict[str, Any]:
    plain = training()
    plain.run(steps)
    return plain.state()


class Broken:
    """Raises whatever it is asked for."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise ArithmeticError("planted")


def test_a_subscriber_that_raises_is_reported_once_and_dropped(training, watched, rules) -> None:
    guarded = training()
    calls: list[int] = []

    def bad(observation: Observation) -> None:
        calls.append(observation.frame.step)
        if observation.frame.step == 2:
            raise ArithmeticError("planted")

    session = watched(guarded, rules=rules(NEVER), on_error="warn", subscribers=[bad])
    after: list[int] = []
    session.guard.subscribe(lambda observation: after.append(observation.frame.step))
    with one_warning("the training goes on: ArithmeticError: planted at .*test_faults_inside.py"):
        guarded.run(6, session.guard.step)
    assert calls == [0, 1, 2]
    assert after == list(range(6)), "the others are told as before"
    assert guarded.state() == bare(training, 6)


def test_a_subscriber_cannot_end_the_training_by_a_stop_of_its_own(training, watched, rules) -> None:
    guarded = training()

    def stop(_: Observation) -> None:
        raise TrainingHalted("mine", step=0, rule="mine")

    session = watched(guarded, rules=rules(NEVER), on_error="warn", subscribers=[stop])
    with one_warning("TrainingHalted: mine"):
        guarded.run(3, session.guard.step)


def test_what_is_to_be_notified_and_raises_is_dropped_and_the_step_is_clipped_all_the_same(
    training, watched, rules
) -> None:
    norms: list[float] = []
    text = "- {name: page, when: step == 1 and loss > 0, action: notify}"

    def train(attempt: Attempt) -> None:
        attempt.clip = 0.01
        guarded = training(lambda p: torch.optim.SGD(p, lr=1.0))
        session = watched(guarded, rules=rules(text), on_error="warn")
        session.guard.on_notify(Broken())
        for _ in range(3):
            before = [p.detach().clone() for p in guarded.model.parameters()]
            guarded.run(1, session.guard.step)
            moved = [p.detach() - b for p, b in zip(guarded.model.parameters(), before, strict=True)]
            norms.append(float(torch.cat([m.flatten() for m in moved]).norm()))

    with one_warning("planted"):
        supervise(train)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.parametrize("what", ["frame", "remember"])
def test_a_collector_that_fails(training, watched, rules, monkeypatch, what: str) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), on_error="warn")
    guarded.run(2, session.guard.step)
    with monkeypatch.context() as broken, one_warning("planted"):
        broken.setattr(Collector, what, Broken())
        guarded.run(4, session.guard.step)
    guarded.run(2, session.guard.step)
    assert guarded.state() == bare(training, 8)
    assert [observation.frame.step for observation in session.seen] == [0, 1, 6, 7]


def test_an_engine_that_fails(training, watched, rules, monkeypatch) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), on_error="warn")
    with monkeypatch.context() as broken, one_warning("planted"):
        broken.setattr(Engine, "evaluate", Broken())
        guarded.run(3, session.guard.step)
    assert guarded.state() == bare(training, 3)


class Odd(Tensor):
    """A tensor that no statistic can be taken of."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.detach, torch.detach):
            raise ArithmeticError("planted")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_hook_that_fails(training, watched, rules) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.as_subclass(Odd)).as_subclass(Tensor)

    guarded, plain = training(net=Strange), training(net=Strange)
    session = watched(guarded, rules=rules(NEVER), on_error="warn")
    with pytest.warns(StepguardWarning, match="planted"):
        guarded.run(4, session.guard.step)
    state = guarded.state()
    torch.manual_seed(1)
    plain.run(4)
    assert state == plain.state()
    assert len(session.seen) == 4


def test_a_rule_that_fails_while_it_runs(training, watched, rules, monkeypatch) -> None:
    text = (
        "- {name: broken, when: act.std > 1e9, action: skip}\n- {name: fine, when: step == 4 and loss > 0}\n"
    )
    guarded = training()
    real = Collector.frame

    def other_layers(self: Collector, step: int, *args: Any, **options: Any) -> Any:
        frame = real(self, step, *args, **options)
        if step == 2:
            values, known = frame.vectors["act.std"]
            frame.vectors["act.std"] = Vector(values[:2], known[:2])
        return frame

    monkeypatch.setattr(Collector, "frame", other_layers)
    session = watched(guarded, rules=rules(text), on_error="warn")
    with one_warning("rule 'broken' failed and is left out from now on: ValueError"):
        guarded.run(6, session.guard.step)
    assert guarded.state() == bare(training, 6)
    assert [alert.rule for alert in session.guard.alerts] == ["fine"]


def a_closed_console() -> Console:
    """One whose terminal has gone away."""
    stream = io.StringIO()
    console = Console(file=stream)
    stream.close()
    return console


def test_a_console_that_is_gone_keeps_no_rule_from_acting(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(HALT), on_error="warn", console=a_closed_console())
    with pytest.warns(StepguardWarning, match="closed file"), pytest.raises(TrainingHalted) as raised:
        guarded.run(6, session.guard.step)
    assert raised.value.step == 3
    assert len(session.seen) == 4
    assert guarded.hooks() == 0


def test_a_recording_that_breaks_off_keeps_no_rule_from_acting(training, watched, rules, tmp_path) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(HALT), on_error="warn", run=tmp_path)
    guarded.run(1, session.guard.step)
    session.guard._reports._writer.flush()
    connection = sqlite3.connect(session.guard.run_path, timeout=0)
    with connection:
        connection.execute("DROP TABLE blocks")
    connection.close()
    with pytest.warns(StepguardWarning), pytest.raises(TrainingHalted):
        guarded.run(6, session.guard.step)
    assert guarded.hooks() == 0


@pytest.mark.parametrize("fault", ["subscriber", "loss", "console", "closed"])
def test_a_fault_ends_no_training_in_which_warnings_are_errors(
    training, watched, rules, capsys, fault: str
) -> None:
    guarded = training()
    options: dict[str, Any] = {"on_error": "warn"}
    if fault == "console":
        options["console"] = a_closed_console()
    session = watched(guarded, rules=rules("- {name: hot, when: loss > 0}"), **options)
    if fault == "subscriber":
        session.guard.subscribe(Broken())
    if fault == "closed":
        session.guard.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guarded.run(3, (lambda _: session.guard.step("none")) if fault == "loss" else session.guard.step)
        session.guard.close()
    err = capsys.readouterr().err
    assert err.count("stepguard: ") == 1
    assert guarded.state() == bare(training, 3)


def test_the_same_fault_is_reported_once_and_another_one_again(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), on_error="warn")

    def one(_: Observation) -> None:
        raise ArithmeticError("first")

    def other(_: Observation) -> None:
        raise KeyError("second")

    for subscriber in (one, one, other):
        session.guard.subscribe(subscriber)
    with pytest.warns(StepguardWarning) as said:
        guarded.run(3, session.guard.step)
    assert [str(each.message).split(" at ")[0].split(": ", 2)[2] for each in said] == [
        "ArithmeticError: first",
        "KeyError: 'second'",
    ]


def test_with_on_error_raise_a_fault_is_raised(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), on_error="raise", subscribers=[Broken()])
    with pytest.raises(ArithmeticError, match="planted"):
        guarded.run(1, session.guard.step)


def test_a_fault_of_the_user_is_none_of_the_guards(training, watched, rules) -> None:
    guarded = training()
    watched(guarded, rules=rules(NEVER), on_error="warn")

    def closure() -> Tensor:
        raise LookupError("the data is gone")

    with pytest.raises(LookupError, match="the data is gone"):
        guarded.optimizer.step(closure)
