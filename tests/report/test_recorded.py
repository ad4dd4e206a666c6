from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from stepguard.errors import RunFileError
from stepguard.recover.decision import Decision
from stepguard.report.recorded import attempt_summary, happenings
from stepguard.rules.alert import Change
from stepguard.signals import Frame


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(asdict(value)))


def test_events_come_back_as_they_were(crash: Change, restart: Decision) -> None:
    over = Change(60, "rising-crash", None, "inactive", "critical")
    events = [
        ("change", as_json(crash)),
        ("note", {}),
        ("decision", as_json(restart)),
        ("change", as_json(over)),
    ]
    found = happenings(events)
    assert found.changes == (crash, over)
    assert found.decisions == (restart,)


@pytest.mark.parametrize("data", [{}, {"evidence": None}, {"evidence": {"steps": []}}, {"evidence": 3}])
def test_a_broken_event_is_named(data: dict[str, Any]) -> None:
    with pytest.raises(RunFileError, match="a recorded change cannot be read"):
        happenings([("change", data)])


def test_the_summary_takes_the_last_values(crash: Change, restart: Decision, blocks) -> None:
    frames = [
        Frame(0, {"loss": 2.0}),
        Frame(1, {"loss": 1.0, "metric.accuracy": 0.5}),
        Frame(2, {"metric.accuracy": 0.6}),
    ]
    happened = happenings([("change", as_json(crash)), ("decision", as_json(restart))])
    found = attempt_summary(2, {"lr_scale": 0.5}, "completed", blocks(frames), happened)
    assert (found.steps, found.loss, found.metrics) == (3, 1.0, {"accuracy": 0.6})
    assert found.remedy() == "learning rate x0.5"
    assert [alert.rule for alert in found.alerts] == ["rising-crash"]
    assert found.decisions == (restart,)
