"""How a guarded training ends: by a rule, by an exception, by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import stepguard
from stepguard.errors import (
    RestartRequested,
    StepguardError,
    StepguardWarning,
    TrainingHalted,
    TrainingStopped,
)
from stepguard.series.runfile import RunFile

NEVER = "- {name: never, when: loss < -1e30, action: halt}"
REMEDY = "{lr: 0.5, init: kaiming, clip: 1.0}"
ENDS = {
    "halt": (TrainingHalted, "halt"),
    "restart": (RestartRequested, f"{{restart: {REMEDY}}}"),
}


# How a rule ends the training


def plain(guard: Any, optimizer: Any) -> Callable[[Tensor], None]:
    def step(loss: Tensor) -> None:
        guard.loss(loss)
        optimizer.step()

    return step


@pytest.mark.parametrize("way", ["guard.step", "optimizer.step"])
@pytest.mark.parametrize("end", ENDS)
def test_a_rule_ends_the_training_before_the_weights_are_touched(
    training, watched, rules, end: str, way: str
) -> None:
    kind, action = ENDS[end]
    guarded, bare = training(), training()
    text = f'- {{name: enough, when: step == 3 and loss > 0, action: {action}, message: "loss {{value}}"}}'
    session = watched(guarded, rules=rules(text))
    step = session.guard.step if way == "guard.step" else plain(session.guard, guarded.optimizer)
    with pytest.raises(kind) as raised:
        guarded.run(9, step)
    state = guarded.state()
    torch.manual_seed(1)
    bare.run(3)
    bare.loss()
    assert state == bare.state()
    stop = raised.value
    assert isinstance(stop, TrainingStopped)
    assert isinstance(stop, StepguardError)
    assert (stop.rule, stop.step) == ("enough", 3)
    assert f"loss {session.scalars('loss')[3]}" in stop.diagnosis
    assert str(stop) == stop.diagnosis
    if isinstance(stop, RestartRequested):
        assert stop.remedy == {"lr": 0.5, "init": "kaiming", "clip": 1.0}
    assert guarded.hooks() == 0, "the guard is closed"
    assert len(session.seen) == 4


def test_the_diagnosis_of_a_late_rung_is_that_of_the_alert(training, watched, rules) -> None:
    guarded = training()
    ladder = "[{lower_lr: {by: 0.9}}, halt]"
    text = f"- {{name: hot, when: loss > 0, settle: 2, action: {ladder}, message: 'l {{value}}'}}"
    session = watched(guarded, rules=rules(text))
    with pytest.raises(TrainingHalted) as raised:
        guarded.run(5, session.guard.step)
    assert raised.value.step == 2
    assert f"l {session.scalars('loss')[0]}" in raised.value.diagnosis
    assert "halt" in raised.value.diagnosis


def test_bad_numbers_never_reach_the_weights_however_many_bad_steps_follow(training, watched) -> None:
    guarded = training()
    guarded.factors = dict.fromkeys(range(3, 30), math.nan)
    session = watched(guarded, rules="default")
    with pytest.raises(RestartRequested):
        guarded.run(30, session.guard.step)
    assert session.decided() == [
        *((step, "non-finite-loss", "skip") for step in (3, 4, 5)),
        (6, "non-finite-loss", "restart"),
    ]
    assert all(torch.isfinite(parameter).all() for parameter in guarded.model.parameters())


def test_a_rollback_without_a_snapshot_and_a_snapshot_without_a_folder_say_so(
    training, watched, rules
) -> None:
    guarded = training()
    text = (
        "- {name: back, when: step == 1 and loss > 0, action: {rollback: {lr: 0.5}}}\n"
        "- {name: keep, when: step == 3 and loss > 0, action: snapshot}"
    )
    session = watched(guarded, rules=rules(text), on_error="warn")
    guarded.run(1, session.guard.step)
    with pytest.warns(StepguardWarning, match="rule 'back' would roll back, but no snapshot is certified"):
        guarded.run(1, session.guard.step)
    with pytest.warns(StepguardWarning, match="a snapshot was asked for, but there is no run folder"):
        guarded.run(3, session.guard.step)
    assert session.decided() == [(3, "keep", "snapshot")]


# The end


def test_close_takes_every_hook_off_and_can_be_called_twice(training, watched, rules) -> None:
    guarded = training()
    assert guarded.hooks() == 0
    session = watched(guarded, rules=rules(NEVER))
    assert guarded.hooks() > 0
    guarded.run(2, session.guard.step)
    session.guard.close()
    session.guard.close()
    assert guarded.hooks() == 0
    guarded.run(2)
    assert len(session.seen) == 2


def test_as_a_context_manager_it_closes_itself(training, rules) -> None:
    guarded = training()
    with stepguard.watch(
        guarded.model, guarded.optimizer, rules=rules(NEVER), run=None, console=None
    ) as guard:
        assert isinstance(guard, stepguard.Guard)
        guarded.run(1, guard.step)
    assert guarded.hooks() == 0


def test_it_closes_itself_after_an_exception_and_lets_it_pass(training, rules, tmp_path) -> None:
    guarded = training()
    with (
        pytest.raises(ZeroDivisionError),
        stepguard.watch(
            guarded.model, guarded.optimizer, rules=rules(NEVER), run=tmp_path, console=None
        ) as guard,
    ):
        guarded.run(2, guard.step)
        guarded.run(1, lambda _: 1 / 0)
    assert guarded.hooks() == 0
    assert outcomes(guard) == ["error: ZeroDivisionError: division by zero"]


def outcomes(guard: stepguard.Guard) -> list[str | None]:
    assert guard.run_path is not None
    with RunFile(guard.run_path) as run:
        return [attempt.outcome for attempt in run.attempts()]


@pytest.mark.parametrize("end", ["completed", *ENDS])
def test_the_run_file_says_how_it_ended(training, watched, rules, tmp_path, end: str) -> None:
    guarded = training()
    text = (
        NEVER
        if end == "completed"
        else f"- {{name: r, when: step == 2 and loss > 0, action: {ENDS[end][1]}}}"
    )
    session = watched(guarded, rules=rules(text), run=tmp_path / "deep" / "runs")
    assert session.guard.run_path.parent == tmp_path / "deep" / "runs"
    try:
        guarded.run(4, session.guard.step)
    except TrainingStopped:
        assert end != "completed"
    session.guard.close()
    assert outcomes(session.guard) == [end if end == "completed" else f"{end}: r"]
    with RunFile(session.guard.run_path) as run:
        assert len(list(run.frames(1))) == (4 if end == "completed" else 3)


def test_without_a_run_folder_nothing_is_written(training, watched, rules, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), run=None)
    guarded.run(2, session.guard.step)
    session.guard.close()
    assert session.guard.run_path is None
    assert [path.name for path in tmp_path.iterdir()] == ["rules-1.yaml"]


def test_several_runs_in_one_folder_do_not_touch_each_other(training, watched, rules, tmp_path) -> None:
    file = rules(NEVER)
    for _ in range(3):
        guarded = training()
        session = watched(guarded, rules=file, run=tmp_path / "runs")
        guarded.run(2, session.guard.step)
        session.guard.close()
    assert len(list((tmp_path / "runs").glob("*.sqlite"))) == 3
