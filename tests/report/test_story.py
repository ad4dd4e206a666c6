from __future__ import annotations

from stepguard.report.story import Chapter, story
from stepguard.report.summary import AlertCount, AttemptSummary
from stepguard.series.runfile import Event


def told(outcome: str, *events: Event, number: int = 1, **more: object) -> list[str]:
    summary = AttemptSummary(number, 100, outcome, **more)  # type: ignore[arg-type]
    return list(story([Chapter(summary, events)], {"boom": ["lower the rate", "clip"]}))


def test_what_happened_is_told_by_step():
    alerts = (AlertCount("boom", "critical", 20, 1, ("conv1",)),)
    events = (
        Event("cured", 40, {"rule": "boom"}),
        Event("resumed", 10, {"step": 10}),
        Event("certified", 30, {"step": 30}),
    )
    assert told("completed", *events, alerts=alerts, loss=0.5) == [
        "attempt 1 began with your settings",
        "  step 10: resumed from the snapshot of step 10, after a crash or a kill",
        "  step 20: boom fired at conv1",
        "  step 40: boom stayed clear: cured",
        "  after 100 steps, loss 0.5: completed",
        "next: nothing",
    ]


def test_a_long_story_is_cut_in_the_middle():
    lines = told("completed", *(Event("cured", step, {"rule": "boom"}) for step in range(30)))
    assert len(lines) == 12 and "... 22 more ..." in lines[7] and "step 29" in lines[9]


def test_every_ending_has_a_way_on():
    assert told("halt: boom")[-1] == "next: boom halted it: lower the rate; clip"
    assert told("halt: other")[-1] == "next: other halted it: stepguard explain other"
    assert "none followed" in told("restart: boom")[-1]
    assert "mend the error" in told("error: ValueError: x")[-1]
    assert "killed" in told("")[-1]
    lines = told("completed", info={"lr_scale": 0.5})
    assert lines[-1] == "next: it went well with learning rate x0.5: put that into the script"
