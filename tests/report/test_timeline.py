from __future__ import annotations

from dataclasses import replace

from stepguard.recover.decision import Decision
from stepguard.report.timeline import Timeline
from stepguard.rules.alert import Change, State

STRIP = """\
dead-layer    ··▃▃▆▆▆▃▃·  from step 20, 2 layers
rising-crash  ····▆▆▆▆▆▆  from step 41, 4 layers
-> skip       ·······▲·▲  3 times
-> restart    ·········▲  step 99
              0       99"""


def change(step: int, layer: str, state: State) -> Change:
    return Change(step, "dead-layer", layer, state, "warning")


def test_alerts_and_decisions_in_time(render, crash: Change, restart: Decision) -> None:
    changes = [
        change(20, "conv1", "firing"),
        change(40, "conv2", "firing"),
        crash,
        change(70, "conv1", "inactive"),
        change(90, "conv2", "inactive"),
    ]
    skips = [replace(restart, kind="skip", step=step) for step in (70, 71, 90)]
    warn = replace(restart, kind="warn", step=5)
    timeline = Timeline((0, 99), changes, [warn, *skips, replace(restart, step=99)])
    assert render(timeline, width=12 + 30 + 4 + 10) == STRIP


def test_no_alerts(render) -> None:
    assert render(Timeline((0, 99), ())) == "no alerts"


def test_an_alert_of_one_step_is_one_block(render) -> None:
    changes = [change(50, "conv1", "firing"), change(51, "conv1", "inactive")]
    strip = render(Timeline((0, 99), changes), width=144).splitlines()[0].split()[1]
    assert (len(strip), strip.count("▆"), strip.index("▆")) == (100, 1, 50)


def test_a_rule_that_fires_again_has_two_blocks(render) -> None:
    changes = [
        change(10, "a", "firing"),
        change(20, "a", "inactive"),
        change(30, "a", "firing"),
        change(31, "a", "firing"),
        change(40, "a", "inactive"),
    ]
    strip = render(Timeline((0, 99), changes), width=144).splitlines()[0].split()[1]
    assert [part for part in strip.split("·") if part] == ["▆" * 10, "▆" * 10]
