"""The ranks of a distributed training take the same decision at the same step. Real processes, gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepguard.report.recorded import happenings
from stepguard.report.replay import replay
from stepguard.series.runfile import RunFile

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.timeout(600),  # all scenarios run before the first test
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two ranks of each scenario have seen."""
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("ranks"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def both(seen: dict[str, Any], scenario: str, what: str) -> Any:
    """What both ranks say alike."""
    first, second = seen[scenario]
    assert first[what] == second[what]
    return first[what]


def test_what_one_rank_alone_sees_both_skip(seen) -> None:
    assert both(seen, "skip", "decided") == [[40, "skip", None]]
    both(seen, "skip", "digest")


def test_under_the_shipped_rules_a_nan_of_one_rank_reaches_no_weights(seen) -> None:
    assert both(seen, "shipped", "decided") == [[15, "skip", None], [40, "skip", None]]
    assert both(seen, "shipped", "finite")
    both(seen, "shipped", "digest")


def test_both_halt_before_the_same_step(seen) -> None:
    assert both(seen, "halt", "ended") == "TrainingHalted before step 41"
    both(seen, "halt", "digest")


def test_both_go_back_to_the_same_snapshot_though_one_would_have_taken_others(seen) -> None:
    ((step, kind, to),) = both(seen, "rollback", "decided")
    assert (step, kind) == (40, "rollback")
    assert 0 < to < 40
    both(seen, "rollback", "digest")


def test_both_restart_and_begin_with_the_same_weights_whatever_their_generators_draw(seen) -> None:
    assert both(seen, "restart", "attempts") == 2
    both(seen, "restart", "digest")


def test_a_signal_to_one_rank_ends_both_at_the_same_step_and_both_are_resumed_bit_for_bit(seen) -> None:
    assert both(seen, "stopped", "ended") == "SystemExit before step 31"
    assert both(seen, "stopped", "first") == 31
    assert both(seen, "stopped", "digest") == both(seen, "stopped", "whole")


def test_only_rank_0_records_and_its_file_replays_what_both_decided(seen) -> None:
    first, second = seen["rollback"]
    assert second["run"] == "None"
    with RunFile(Path(first["run"])) as run:
        (record,) = run.attempts()
        live = happenings((event.kind, event.data) for event in run.events(1))
        again = replay(run, record)
    assert again.decisions == live.decisions
    assert again.changes == live.changes
    assert len(list(Path(first["run"]).parent.glob("*.sqlite"))) == 1


def test_a_guard_on_one_rank_alone_never_waits_for_ever_and_changes_nothing(seen) -> None:
    assert both(seen, "alone", "digest"), "DDP keeps them equal as long as no rank skips alone"
    (said,) = seen["alone"][0]["said"]
    assert "rank 1 is not guarded" in said


def test_trainings_of_different_lengths_do_not_wait_for_each_other(seen) -> None:
    assert "a rank has left" in seen["uneven"][0]["said"][0]
    assert seen["uneven"][1]["said"] == []


def test_of_a_model_that_is_cut_in_stages_each_rank_knows_the_layers_of_all(seen) -> None:
    assert both(seen, "stages", "decided") == [[0, "stage0"], [5, "stage1"]]
