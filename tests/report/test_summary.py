from __future__ import annotations

from dataclasses import replace

import pytest

from stepguard.recover.decision import Decision
from stepguard.report.summary import AlertCount, AttemptSummary, Summary, count_alerts
from stepguard.rules.alert import Change

FULL = """\
stepguard: 2 attempts, 234 steps
  attempt  began with                               steps  ended                    loss    acc
        1  your settings                               42  restart: rising-crash     2.3      -
        2  learning rate x0.5, LSUV initialisation    192  completed              0.0812  0.953

  attempt  alert         severity  first step  times  layers  what was done
        1  rising-crash  critical          41      1       4  restart
        2  dead-layer    warning           60      2       2
        2  loss-spike    warning           70      3       -  would skip 3 times

  run file  runs/a.sqlite"""

LINES = """\
stepguard: attempt 1: 42 steps, restart: rising-crash, loss 2.3
stepguard: attempt 1: critical: rising-crash: first at step 41, fired 1 time at 4 layers
stepguard: attempt 1: rising-crash -> restart (learning rate x0.5, LSUV initialisation): 1 time
stepguard: attempt 2 (learning rate x0.5, LSUV initialisation): 192 steps, completed, loss 0.0812, acc 0.953
stepguard: attempt 2: warning: dead-layer: first at step 60, fired 2 times at 2 layers
stepguard: attempt 2: warning: loss-spike: first at step 70, fired 3 times
stepguard: attempt 2: loss-spike -> would skip: 3 times
stepguard: run file runs/a.sqlite"""


def firing(step: int, rule: str, layer: str | None) -> Change:
    return Change(step, rule, layer, "firing", "warning")


@pytest.fixture
def summary(crash: Change, restart: Decision) -> Summary:
    first = AttemptSummary(
        1,
        42,
        "restart: rising-crash",
        {"seed": 0, "lr_scale": 1.0, "init": None, "clip": None},
        loss=2.303,
        alerts=count_alerts([crash]),
        decisions=(restart,),
    )
    changes = [
        firing(60, "dead-layer", "conv2"),
        firing(60, "dead-layer", "conv3"),
        replace(firing(70, "dead-layer", "conv3"), state="inactive"),
        *(firing(step, "loss-spike", None) for step in (70, 80, 90)),
        firing(90, "dead-layer", "conv2"),
    ]
    skip = Decision(70, "skip", {}, "loss-spike", None, 0, 1, 1, "", dry_run=True)
    second = AttemptSummary(
        2,
        192,
        "completed",
        {"seed": 1, "lr_scale": 0.5, "init": "lsuv", "clip": None, "total_steps": 192},
        loss=0.0812,
        metrics={"acc": 0.953},
        alerts=count_alerts(changes),
        decisions=(skip, replace(skip, step=80), replace(skip, step=90)),
    )
    return Summary((first, second), "runs/a.sqlite")


def test_in_full(render, summary: Summary) -> None:
    assert render(summary, width=100) == FULL


def test_as_lines(summary: Summary) -> None:
    assert "\n".join(summary.lines()) == LINES


def test_a_short_quiet_run(render) -> None:
    summary = Summary((AttemptSummary(1, 1, ""),))
    assert render(summary).splitlines() == [
        "stepguard: 1 attempt, 1 step",
        "  attempt  began with     steps  ended       loss",
        "        1  your settings      1  not closed     -",
    ]
    assert summary.lines() == ["stepguard: attempt 1: 1 step, not closed"]


def test_alerts_are_counted_by_rule() -> None:
    changes = [
        firing(3, "a", "x"),
        replace(firing(4, "b", "x"), state="pending"),
        firing(5, "a", "y"),
        firing(5, "a", "x"),
    ]
    assert count_alerts(changes) == (AlertCount("a", "warning", 3, 2, ("x", "y")),)


def test_an_alert_on_the_run_counts_the_layers_of_its_evidence(crash: Change) -> None:
    (alert,) = count_alerts([crash])
    assert alert.layers == ("conv3", "conv4", "conv5", "head")
