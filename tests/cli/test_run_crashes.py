"""`stepguard run` over processes that crash, hang, and fail before they have begun."""

from __future__ import annotations

import re
import time

import pytest


@pytest.mark.parametrize(
    ("crash", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "segmentation fault (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed (SIGKILL"),
        ("raise MemoryError('no room')", "out of memory: MemoryError: no room"),
        (
            "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')",
            "out of memory: OutOfMemoryError: CUDA out of memory. Tried",
        ),
        ("raise ValueError('bad batch')", "ValueError: bad batch"),
        ("sys.exit(9)", "exit code 9"),
    ],
)
def test_a_crash_is_told_in_words_and_the_attempt_is_made_again(start, crash: str, words: str) -> None:
    run = start(f"steps(0, 5)\nif attempt.number == 1:\n    {crash}\nlink.close()")
    code, out, err = run.end()
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["attempt", "1"], ["attempt", "2"]]
    assert f"start 1: step 4, 0:00:00: {words}" in re.sub(r"0:00:\d\d", "0:00:00", err)
    assert "start 2 of 4 in 1 s" in err


def test_the_same_step_that_fails_twice_in_the_same_way_is_not_tried_a_third_time(start) -> None:
    code, out, err = start("steps(0, 5); sys.exit(9)").end()
    assert (code, len(out.splitlines())) == (9, 2)
    assert "no restart: step 4 has failed twice in the same way" in err


def test_restarts_after_crashes_wait_longer_and_longer_until_none_is_left(start) -> None:
    began = time.monotonic()
    code, out, err = start("steps(0, attempt.number); os.kill(os.getpid(), 11)", "--restarts", "2").end()
    assert (code, len(out.splitlines())) == (128 + 11, 3)
    assert re.findall(r"of 3 in (\S+) s", err) == ["1", "2"]
    assert time.monotonic() - began > 3.0
    assert "no restart: no attempts are left" in err


@pytest.mark.parametrize("before", ["", "link.begin(None, lambda hook: Handle()); "])
def test_what_fails_before_its_first_step_is_not_tried_again(start, before: str) -> None:
    code, out, err = start(f"{before}sys.exit(3)").end()
    assert (code, len(out.splitlines())) == (3, 1)
    assert "failed before its first guarded step" in err
    assert ("no guard was made" in err) is not bool(before)


def test_a_hang_prints_its_stacks_and_is_made_again(start) -> None:
    script = """
def waits_for_ever():
    time.sleep(100)
steps(0, 5)
if attempt.number == 1:
    waits_for_ever()
link.close()
"""
    code, out, err = start(script, "--hang", "0.5").end()
    assert (code, len(out.splitlines())) == (0, 2)
    assert re.search(r"no sign of life for \d+ s after step 4; its stacks", err)
    assert "in waits_for_ever" in err
    assert "start 1: step 4, 0:00:0" in err


def test_of_a_hang_every_process_below_prints_its_stacks(start) -> None:
    script = """
if attempt.number == 1:
    rank = "import time\\ndef other_waits(): print(1, flush=True), time.sleep(100)\\nother_waits()"
    other = subprocess.Popen([sys.executable, "-c", rank], start_new_session=True, stdout=subprocess.PIPE)
    other.stdout.readline()
steps(0, 5)
if attempt.number == 1:
    other.wait()
link.close()
"""
    code, _, err = start(script, "--hang", "0.5").end()
    assert code == 0
    # Whole lines: stacks that two processes print at the same time come out in pieces.
    assert re.search(r'File "<string>", line 2 in other_waits\n', err)


def test_slow_beginnings_and_all_that_follows_the_guard_are_no_hang(start) -> None:
    script = "time.sleep(1.5); steps(0, 5); time.sleep(0.2); link.close(); time.sleep(1)"
    code, _, err = start(script, "--hang", "0.4").end()
    assert (code, err) == (0, "")


def test_a_terminal_that_was_closed_is_no_reason_to_leave_the_training_alone(start) -> None:
    run = start(
        "steps(0, 5); print('on', flush=True); time.sleep(0.5)\nif attempt.number == 1:\n    sys.exit(9)"
    )
    assert (run.line()[:9], run.line()) == ("attempt 1", "on")
    run.process.stderr.close()
    assert (run.line()[:9], run.line()) == ("attempt 2", "on")
    assert run.process.wait(20) == 0
    run.process.stderr = None
