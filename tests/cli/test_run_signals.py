"""`stepguard run` passes signals on."""

from __future__ import annotations

import signal
import time

import pytest


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)],
)
def test_a_signal_ends_in_a_snapshot_at_the_next_step(start, number: signal.Signals, code: int) -> None:
    run = start("steps(0, 5); print('on', flush=True); steps(5, 10_000, 0.05)")
    assert (run.line()[:9], run.line()) == ("attempt 1", "on")
    run.send(number)
    found, out, err = run.end()
    assert found == code
    assert out.startswith("snapshot at")
    assert f"stopped by {number.name}" in err
    assert "Traceback" not in err


def test_what_does_not_heed_the_signal_is_killed_after_the_grace(start) -> None:
    run = start("steps(0, 5); print('on', flush=True)\nwhile True:\n    time.sleep(1)", "--grace", "0.5")
    run.line(), run.line()
    began = time.monotonic()
    run.send(signal.SIGTERM)
    code, _, err = run.end()
    assert code == 143
    assert 0.4 < time.monotonic() - began < 5
    assert "SIGTERM: the training is asked to end; in 0.5 s it will be killed" in err


def test_a_signal_during_the_pause_before_a_restart_ends_the_run(start) -> None:
    run = start("steps(0, 5 + attempt.number); sys.exit(9)")
    run.line(), run.line()
    time.sleep(0.5)
    run.send(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, out) == (143, "")
    assert "stopped by SIGTERM" in err


def test_under_nohup_a_hangup_changes_nothing(start) -> None:
    run = start("steps(0, 5); print('on', flush=True); time.sleep(0.5); link.close()", under=("nohup",))
    while run.line() != "on":
        pass
    run.send(signal.SIGHUP)
    assert run.end()[0] == 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_keeps_the_signal_that_its_launcher_and_the_supervisor_both_send(start, rank: str) -> None:
    twice = "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)"
    run = start(f"steps(0, 5); {twice}; steps(5, 10)", "--restarts", "0", under=("env", f"RANK={rank}"))
    code, out, _ = run.end()
    assert code == 143
    assert out.splitlines()[1:] == ["snapshot at 5"]
