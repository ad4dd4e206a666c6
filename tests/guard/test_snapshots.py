"""Snapshots that are asked for: by the training, by a rule, by what ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stepguard
from stepguard.errors import StepguardWarning, TrainingHalted
from stepguard.recover import certifying, shelf
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.series.runfile import RunFile

NEVER = "- {name: never, when: loss < -1e30, action: halt}"


def shelves(session) -> list[tuple[int, str]]:
    return [(found.step, found.grade) for found in shelf.shelved(session.guard.run_path)]


def test_the_training_may_ask_for_one_and_resume_from_it(training, watched, rules, tmp_path: Path) -> None:
    file = rules(NEVER)
    guarded = training()
    session = watched(guarded, rules=file, run=tmp_path)
    guarded.run(7, session.guard.step)
    path = session.guard.snapshot()
    assert path is not None
    state = torch.load(path, weights_only=True)
    assert (state["step"], state["evidence"]) == (7, {"asked": "by the training"})
    then = guarded.state()
    guarded.run(3, session.guard.step)
    session.guard.close("error: broken off")
    other = training()
    again = watched(other, rules=file, run=tmp_path)
    assert again.guard.resume() == 7
    assert other.state() == then


def test_a_rule_that_asks_for_one_leaves_its_evidence(training, watched, rules, tmp_path: Path) -> None:
    guarded = training()
    file = rules(
        "- {name: look, when: step == 4 and loss > 0, action: snapshot, message: 'loss {value:.1f}'}"
    )
    session = watched(guarded, rules=file, run=tmp_path)
    guarded.run(6, session.guard.step)
    assert shelves(session) == [(4, "evidence")]
    (found,) = shelf.shelved(session.guard.run_path)
    evidence = torch.load(found.path, weights_only=True)["evidence"]
    assert evidence["rule"] == "look"
    assert "loss" in evidence["diagnosis"]
    session.guard.close()
    with RunFile(session.guard.run_path) as run:
        (event,) = run.events(1, "snapshot")
    assert (event.step, event.data) == (4, {"file": found.path.name, "grade": "evidence"})
    assert shelf.newest_certified(session.guard.run_path) is None, "nobody goes on from evidence"


def test_a_halt_leaves_one_even_of_weights_that_are_not_finite(
    training, watched, rules, tmp_path: Path
) -> None:
    guarded = training()
    session = watched(
        guarded, rules=rules("- {name: h, when: step == 3 and lr > 0, action: halt}"), run=tmp_path
    )
    guarded.run(3, session.guard.step)
    with torch.no_grad():
        guarded.model[0].weight[0, 0] = float("nan")
    with pytest.raises(TrainingHalted):
        guarded.run(1, session.guard.step)
    assert shelves(session) == [(3, "evidence")]


def test_snapshots_are_bounded_and_the_last_certified_one_stays(
    training, watched, rules, tmp_path: Path
) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), run=tmp_path)
    for _ in range(4 * certifying.LEAST):
        guarded.run(1, session.guard.step)
        session.guard._snapshots.keeper.writer.finish()
    for _ in range(5):
        session.guard.snapshot()
        guarded.run(1, session.guard.step)
    grades = [grade for _, grade in shelves(session)]
    assert (grades.count("certified"), grades.count("quiet")) == (2, 2)
    session.guard.close()
    assert sorted(grade for _, grade in shelves(session)) == ["certified", "quiet"]


def test_a_short_run_leaves_no_folder(training, watched, rules, tmp_path: Path) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), run=tmp_path)
    guarded.run(5, session.guard.step)
    session.guard.close()
    assert [path.suffix for path in tmp_path.glob("20*")] == [".sqlite"]


def test_what_should_end_at_a_boundary_leaves_a_snapshot_to_resume_from(
    training, watched, rules, tmp_path: Path
) -> None:
    file = rules(NEVER)
    whole = training()
    with watched(whole, rules=file).guard as guard:
        whole.run(12, guard.step)
    expected = whole.state()
    attempt = Attempt()
    token = CURRENT.set(attempt)
    guarded = training()
    try:
        session = watched(guarded, rules=file, run=tmp_path)
    finally:
        CURRENT.reset(token)
    guarded.run(5, session.guard.step)
    attempt.link.stopping = SystemExit(143)
    with pytest.raises(SystemExit):
        guarded.run(3, session.guard.step)
    assert shelves(session) == [(6, "quiet")]
    with RunFile(session.guard.run_path) as run:
        assert run.attempts()[0].outcome == "stopped: SIGTERM"
    assert shelf.newest_certified(session.guard.run_path) is not None
    other = training()
    again = watched(other, rules=file, run=tmp_path)
    other.now = again.guard.resume()
    assert other.now == 6
    other.run(6, again.guard.step)
    assert other.state() == expected


def test_a_state_that_cannot_be_read_back_safely_is_named_and_the_training_goes_on(
    training, watched, rules, tmp_path: Path
) -> None:
    class Odd:
        def state_dict(self) -> dict[str, object]:
            return {"fn": print}

    guarded = training()
    session = watched(guarded, rules=rules(NEVER), run=tmp_path, on_error="warn")
    session.guard.keep(odd=Odd())
    words = (
        r"no snapshots are taken: TypeError: kept/odd/fn: expected tensors.* got builtin_function_or_method"
    )
    with pytest.warns(StepguardWarning, match=words):
        guarded.run(5, session.guard.step)
    assert len(session.seen) == 5


def test_each_guard_of_an_attempt_keeps_its_own_ladders(training, rules) -> None:
    one = rules("- {name: r, when: step == 2 and loss > 0, settle: 3, action: [{restart: {lr: 0.5}}, warn]}")
    other = rules(
        "- {name: r, when: step < 9 and loss > 0, settle: 1, action: [{lower_lr: {by: 0.5}}, warn]}"
    )
    decided: list[list[tuple[int, str]]] = []

    def train(attempt: Attempt) -> None:
        first, second = training(), training()
        options = {"run": None, "console": None, "on_error": "raise"}
        a = stepguard.watch(first.model, first.optimizer, rules=one, **options)
        b = stepguard.watch(second.model, second.optimizer, rules=other, **options)
        try:
            for _ in range(4):
                second.run(1, b.step)
                first.run(1, a.step)
        finally:
            decided.append(
                [(decision.step, decision.kind) for guard in (a, b) for decision in guard.decisions]
            )

    stepguard.supervise(train)
    lowered = [(0, "lower_lr"), (1, "warn")]
    assert decided == [[(2, "restart"), *lowered], [(2, "warn"), *lowered]], "only restarts stay spent"


def test_a_model_that_is_too_large_for_the_memory_is_not_copied(
    training, watched, rules, tmp_path: Path
) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER), run=tmp_path, on_error="warn")
    session.guard._snapshots.keeper._budget = 100
    with pytest.warns(StepguardWarning, match=r"no snapshots are taken: one takes 0.0 GB, at most 0.0 GB"):
        guarded.run(5, session.guard.step)
    assert len(session.seen) == 5
