"""Trainings killed at random moments end as one that was never killed, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("STEPGUARD_KILLS", "8"))
"""How many; 50 take some minutes."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(60 + 20 * KILLS)
def test_the_end_is_that_of_a_training_that_was_never_killed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(tmp_path), "250", str(KILLS), "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == KILLS
    assert set(told["results"]) == {told["expected"]}
    assert max(told["newest"]) > 0, "some were killed after their first snapshot"
