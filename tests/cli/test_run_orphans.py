"""`stepguard run` leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process has ended by then; a zombie has."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


CHILDREN = """
steps(0, 5)
sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
near = subprocess.Popen(sleep)
far = subprocess.Popen(sleep, start_new_session=True)
print(os.getpid(), near.pid, far.pid, flush=True)
"""


@pytest.mark.parametrize("ending", ["", "sys.exit(9)", "os.kill(os.getpid(), 9)", "signal.pause()"], ids=str)
def test_no_process_is_left_behind_also_none_that_left_the_session(start, ending: str) -> None:
    run = start(CHILDREN + ending, "--restarts", "0", "--grace", "0.5")
    run.line()
    pids = [int(pid) for pid in run.line().split()]
    if ending == "signal.pause()":
        run.send(signal.SIGTERM)
    run.end()
    assert all(gone(pid, within=0.5) for pid in pids)


def test_a_supervisor_that_is_killed_takes_the_training_with_it(start) -> None:
    run = start(CHILDREN + "signal.pause()", "--grace", "0.5")
    run.line()
    training, near, far = (int(pid) for pid in run.line().split())
    run.process.kill()
    assert gone(training) and gone(near)
    os.kill(far, signal.SIGKILL)  # it left the session, and nobody is left who could know
