from __future__ import annotations

import pytest

from stepguard.report.story import Chapter, Left, story
from stepguard.report.summary import AlertCount, AttemptSummary
from stepguard.series.runfile import Event


def told(outcome: str, *events: Event, number: int = 1, **more: object) -> list[str]:
    summary = AttemptSummary(number, 100, outcome, **more)  # type: ignore[arg-type]
    return list(story([Chapter(summary, events)], {"boom": ["lower the rate", "clip"]}))


def test_what_happened_is_told_by_step():
    alerts = (AlertCount("boom", "critical", 20, 1, ("conv1",)),)
    events = (
        Event("cured", 40, {"rule": "boom"}),
        Event("resumed", 10, {"step": 10, "ended": "error: killed (SIGKILL)", "reached": 15}),
        Event("certified", 30, {"step": 30}),
    )
    assert told("completed", *events, alerts=alerts, loss=0.5) == [
        "attempt 1 began with your settings",
        "  step 10: went on from the snapshot of step 10; before, at step 15 or soon after: killed (SIGKILL)",
        "  step 20: boom fired at conv1",
        "  step 40: boom stayed clear: cured",
        "  after 100 steps, loss 0.5: completed",
        "next: nothing",
    ]


def test_an_alert_is_told_with_its_message_and_the_likeliest_cause():
    alerts = (AlertCount("boom", "critical", 20, 1, ()),)
    events = (
        Event("change", 20, {"rule": "boom", "state": "firing", "message": "it is loud"}),
        Event("causes", 20, {"rule": "other", "causes": ["none of its own"]}),
        Event("causes", 20, {"rule": "boom", "causes": ["raw inputs", "a high rate"]}),
    )
    lines = told("restart: boom", *events, alerts=alerts)
    assert lines[1] == "  step 20: boom fired: it is loud; likely: raw inputs"
    assert lines[-1].endswith("none followed: lower the rate; or stepguard run -- CMD gives it one")


def test_a_long_story_is_cut_in_the_middle():
    lines = told("completed", *(Event("cured", step, {"rule": "boom"}) for step in range(30)))
    assert len(lines) == 12 and "... 22 more ..." in lines[7] and "step 29" in lines[9]


def test_every_ending_has_a_way_on():
    assert told("halt: boom")[-1] == "next: boom halted it: lower the rate; clip"
    assert told("halt: other")[-1] == "next: other halted it: stepguard explain other"
    assert "none followed" in told("restart: boom")[-1]
    lines = told("completed", info={"lr_scale": 0.5})
    assert lines[-1] == "next: it went well with learning rate x0.5: put that into the script"


def test_where_a_better_attempt_is_kept_that_one_says_what_to_do():
    best = AttemptSummary(2, 100, "completed", info={"lr_scale": 0.5})
    after = AttemptSummary(3, 60, "kept: behind-another-attempt", info={"lr_scale": 2.0})
    lines = list(story([Chapter(best, ()), Chapter(after, ())], {}))
    assert lines[-2] == "  after 60 steps: behind-another-attempt: the best attempt before it is kept"
    assert lines[-1] == "next: it went well with learning rate x0.5: put that into the script"


@pytest.mark.parametrize(
    ("outcome", "runs", "ended", "way_on"),
    [
        ("error: ValueError: x\nmore", None, "crashed: ValueError: x", "mend the error"),
        ("error: MemoryError: no room", None, "crashed: MemoryError: no room", "give it more memory"),
        ("error: OutOfMemoryError: CUDA out of memory.", None, "crashed: OutOfMemoryError", "more memory"),
        ("error: hung", None, "hung", "its stacks are in what stepguard run printed"),
        ("error: killed (SIGKILL: by whom)", None, ": killed (SIGKILL: by whom)", "find what killed it"),
        ("stopped: SIGTERM", None, "ended by SIGTERM", "next: go on from the snapshot of step 51"),
        ("", None, "not closed: it goes on, or was killed", "if it no longer runs"),
        ("", False, "killed, or the machine went down", "find what killed it"),
        ("", True, "it goes on", "wait"),
    ],
)
def test_an_attempt_that_was_broken_off_says_how_and_how_to_go_on(outcome, runs, ended, way_on):
    summary = AttemptSummary(1, 100, outcome)
    lines = list(story([Chapter(summary, [])], {}, Left("runs/a.sqlite", 51, runs)))
    assert ended in lines[-2]
    assert way_on in lines[-1]
    if not runs:
        assert "snapshot of step 51: stepguard run --resume runs/a.sqlite -- CMD" in lines[-1]
        assert "from the beginning" in list(story([Chapter(summary, [])], {}))[-1]
