"""What a person gets from a guard and gives to it: metrics, subscribers, notifications, the console."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from stepguard.errors import StepguardWarning, TrainingHalted
from stepguard.recover.recovery import Observation
from stepguard.report.diagnosis import Diagnosis

NEVER = "- {name: never, when: loss < -1e30, action: halt}"


# What is logged


def test_what_is_logged_reaches_the_rules_at_the_next_step(training, watched, rules) -> None:
    guarded = training()
    text = "- {name: good, when: metric.accuracy > 0.9}\n- {name: none, when: metric.other > 0}"
    session = watched(guarded, rules=rules(text))
    guarded.run(2, session.guard.step)
    session.guard.log(accuracy=0.5)
    guarded.run(1, session.guard.step)
    session.guard.log(accuracy=0.95, wer=1)
    guarded.run(2, session.guard.step)
    assert session.scalars("metric.accuracy") == [None, None, 0.5, 0.95, None]
    assert session.scalars("metric.wer") == [None, None, None, 1.0, None]
    assert [(alert.rule, alert.step) for alert in session.guard.alerts] == [("good", 3)]


def test_of_a_name_that_is_logged_twice_the_last_number_counts(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(NEVER))
    session.guard.log(accuracy=0.1)
    session.guard.log(accuracy=torch.tensor(0.2), loss=3)
    guarded.run(1, session.guard.step)
    assert session.scalars("metric.accuracy") == [pytest.approx(0.2)]
    assert session.scalars("metric.loss") == [3.0]
    assert session.scalars("loss") != [3.0], "a metric of that name is no signal"


# Who is told


def test_subscribers_get_each_step_in_order(training, watched, rules) -> None:
    guarded = training()
    given: list[Observation] = []
    later: list[Observation] = []
    text = "- {name: hot, when: step == 3 and loss > 0, action: {lower_lr: {by: 0.5}}}"
    session = watched(guarded, rules=rules(text), subscribers=[given.append])
    guarded.run(2, session.guard.step)
    session.guard.subscribe(later.append)
    guarded.run(4, session.guard.step)
    assert [observation.frame.step for observation in given] == list(range(6))
    assert later == given[2:]
    assert [bool(observation.changes) for observation in given] == [False] * 3 + [True, True, False]
    assert [o.decision and o.decision.kind for o in given] == [None] * 3 + ["lower_lr", None, None]
    assert [layer.type for layer in given[0].layers] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_the_frames_of_subscribers_are_theirs(training, watched, rules) -> None:
    guarded = training()
    told: list[str] = []
    session = watched(guarded, rules=rules(NEVER))
    session.guard.subscribe(lambda observation: told.append(repr(observation.frame)))
    guarded.run(5, session.guard.step)
    assert [repr(observation.frame) for observation in session.seen] == told


def test_notify_calls_those_who_asked_with_the_diagnosis(training, watched, rules) -> None:
    guarded = training()
    told: list[Diagnosis] = []
    text = (
        '- {name: page, when: step >= 2 and step < 4 and loss > 0, action: notify, message: "loss {value}"}\n'
        "- {name: warn, when: step == 5 and loss > 0}"
    )
    session = watched(guarded, rules=rules(text))
    session.guard.on_notify(told.append)
    guarded.run(8, session.guard.step)
    (diagnosis,) = told
    assert (diagnosis.rule, diagnosis.step) == ("page", 2)
    assert diagnosis.message == f"loss {session.scalars('loss')[2]}"


@pytest.mark.parametrize("action", ["skip", "{lower_lr: {by: 0.5}}", "halt", "notify"])
def test_a_stronger_action_of_another_rule_keeps_nobody_from_being_notified(
    training, watched, rules, action: str
) -> None:
    guarded = training()
    told: list[str] = []
    text = (
        "- {name: page, when: step == 1 and loss > 0, action: notify}\n"
        f"- {{name: other, when: step == 1 and loss > 0, action: {action}}}"
    )
    session = watched(guarded, rules=rules(text))
    session.guard.on_notify(lambda diagnosis: told.append(diagnosis.rule))
    try:
        guarded.run(4, session.guard.step)
    except TrainingHalted:
        assert action == "halt"
    assert told == (["page", "other"] if action == "notify" else ["page"])


def test_notify_further_up_a_ladder_is_called_too(training, watched, rules) -> None:
    guarded = training()
    told: list[Diagnosis] = []
    text = "- {name: hot, when: loss > 0, settle: 3, action: [{lower_lr: {by: 0.9}}, notify]}"
    session = watched(guarded, rules=rules(text))
    session.guard.on_notify(told.append)
    guarded.run(5, session.guard.step)
    assert session.decided() == [(0, "hot", "lower_lr"), (3, "hot", "notify")]
    assert [diagnosis.rule for diagnosis in told] == ["hot"]


def test_nobody_is_notified_in_a_dry_run(training, watched, rules) -> None:
    guarded = training()
    told: list[Diagnosis] = []
    session = watched(guarded, rules=rules("- {name: hot, when: loss > 0, action: notify}"), dry_run=True)
    session.guard.on_notify(told.append)
    guarded.run(3, session.guard.step)
    assert session.decided() == [(0, "hot", "notify")]
    assert told == []


def test_a_rule_in_percent_says_once_that_it_sleeps(training, watched, rules) -> None:
    guarded = training()
    file = rules("- {name: late, when: loss > 0, active: 50%..}")
    session = watched(guarded, rules=file, on_error="warn")
    with pytest.warns(
        StepguardWarning, match="'late' sleeps: it counts in percent, give .* total_steps"
    ) as said:
        guarded.run(4, session.guard.step)
    assert len(said) == 1
    assert session.guard.alerts == []


def test_the_console_tells_alerts_and_ends_with_a_summary(training, watched, rules) -> None:
    guarded, out = training(), io.StringIO()
    text = '- {name: hot, when: step == 2 and loss > 0, severity: critical, message: "too hot"}'
    session = watched(guarded, rules=rules(text), console=Console(file=out, width=200))
    guarded.run(4, session.guard.step)
    session.guard.log(accuracy=0.875)
    session.guard.close()
    lines = out.getvalue().splitlines()
    assert sum("too hot" in line for line in lines) == 1
    assert "4 steps" in out.getvalue()
    assert "accuracy 0.875" in out.getvalue()


def test_what_goes_on_and_on_is_told_a_few_times(training, watched, rules) -> None:
    guarded, out = training(), io.StringIO()
    file = rules("- {name: hot, when: loss > 0, settle: 1, action: {skip: {in_a_row: 1000}}}")
    session = watched(guarded, rules=file, dry_run=True, console=Console(file=out, width=200))
    guarded.run(150, session.guard.step)
    assert len(session.decided()) == 150
    told = [line for line in out.getvalue().splitlines() if "hot still fires -> would skip" in line]
    assert [line.split(":")[1] for line in told] == [f" step {step}" for step in (1, 2, 3, 10, 100)]
    assert "times" not in told[2] and "(10 times)" in told[3] and "(100 times)" in told[4]


def test_a_dry_run_tells_once_in_full_that_it_would_halt(training, watched, rules) -> None:
    guarded, out = training(), io.StringIO()
    steps = " or ".join(f"step == {step}" for step in range(4, 60, 4))
    text = f"- {{name: hot, when: ({steps}) and loss > 0, settle: 2, action: [halt]}}"
    session = watched(guarded, rules=rules(text), dry_run=True, console=Console(file=out, width=200))
    guarded.run(60, session.guard.step)
    assert len(session.decided()) == 14
    told = [line.split(": ", 1)[1] for line in out.getvalue().splitlines() if "-> would halt" in line]
    assert told[0].startswith("step 4: warning: hot: ")
    assert told[1:4] == [f"step {step}: hot fires again -> would halt" for step in (8, 12, 16)]
    assert told[4:5] == ["step 44: hot fires again -> would halt (10 times)"]
    assert "cured" not in out.getvalue()


def test_without_a_console_it_is_silent(training, watched, rules, capsys) -> None:
    guarded = training()
    session = watched(guarded, rules=rules("- {name: hot, when: loss > 0}"), console=None)
    guarded.run(3, session.guard.step)
    session.guard.close()
    assert capsys.readouterr() == ("", "")


def test_auto_tells_on_standard_error(training, watched, rules, capsys) -> None:
    guarded = training()
    session = watched(guarded, rules=rules("- {name: hot, when: loss > 0}"), console="auto")
    guarded.run(3, session.guard.step)
    session.guard.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "hot" in err
