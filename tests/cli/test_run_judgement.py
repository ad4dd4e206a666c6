"""What `stepguard run` makes of an ending, and of silence. No processes here."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Standing
from stepguard.recover.handover import CLOSED, QUIET, STEPPING, Beat, End, Handover
from stepguard.recover.supervisor_ending import Left, judge
from stepguard.recover.supervisor_hang import HangWatch

RESTART = End("restart", 7, "r")
HALT = End("halt", 7, "h")
STOPPED = End("signal", 7, "SIGTERM")


@pytest.mark.parametrize(
    ("left", "kind", "code", "words"),
    [
        (Left(0, None, 9), "fine", 0, "completed"),
        (Left(1, RESTART, 7), "restart", 75, "rule r asks for a restart"),
        (Left(0, RESTART, 7), "restart", 75, "rule r asks for a restart"),
        (Left(1, HALT, 7), "halt", 70, "halted by rule h"),
        (Left(143, STOPPED, 7, passed_on=signal.SIGTERM), "stopped", 143, "stopped by SIGTERM"),
        (Left(143, STOPPED, 7, passed_on=signal.SIGUSR1), "stopped", 75, "stopped by SIGUSR1"),
        (Left(-9, None, 7, passed_on=signal.SIGINT), "stopped", 130, "stopped by SIGINT"),
        (Left(0, None, 7, passed_on=signal.SIGTERM), "fine", 0, "completed"),
        (Left(1, RESTART, 7, passed_on=signal.SIGTERM), "stopped", 143, "stopped by SIGTERM"),
        (Left(-2, None, 7), "stopped", 130, "stopped by SIGINT"),
        (Left(-6, None, 7, hung=5.0), "hang", 134, "hung"),
        (Left(3, None, 7), "crash", 3, "exit code 3"),
        (Left(139, None, 7), "crash", 139, "segmentation fault (SIGSEGV)"),
        (Left(-7, None, 7), "crash", 135, "bus error, which a full /dev/shm gives, too (SIGBUS)"),
        (Left(-15, None, 7), "crash", 143, "killed by SIGTERM"),
        (
            Left(-9, None, 7, out_of_memory=True),
            "crash",
            137,
            "out of memory: killed by the kernel (SIGKILL)",
        ),
        (
            Left(1, End("error", 7, "OutOfMemoryError: CUDA out of memory. Tried\nto"), 7),
            "crash",
            1,
            "out of memory: OutOfMemoryError: CUDA out of memory. Tried",
        ),
        (Left(1, End("error", 7, "KeyError: 'x'"), 7), "crash", 1, "KeyError: 'x'"),
        (Left(-6, End("error", 7, "KeyError: 'x'"), 7, hung=3.0), "crash", 1, "KeyError: 'x'"),
        (Left(-11, End("error", 7, "KeyError: 'x'"), 7), "crash", 139, "segmentation fault (SIGSEGV)"),
    ],
)
def test_endings_are_told_apart(left: Left, kind: str, code: int, words: str) -> None:
    ending = judge(left)
    assert (ending.kind, ending.code, ending.words) == (kind, code, words)


def test_failures_are_alike_at_the_same_step_in_the_same_way_only() -> None:
    first = judge(Left(-9, None, 7))
    assert judge(Left(-9, None, 7)).failed_like(first)
    assert not judge(Left(-9, None, 8)).failed_like(first)
    assert not judge(Left(-11, None, 7)).failed_like(first)
    assert not first.failed_like(None)


def looks(watch: HangWatch, beats: list[tuple[float, Beat]]) -> list[float]:
    """The times at which it says that the training hangs."""
    return [now for now, beat in beats if watch.look(beat, now) is not None]


def every_second(*stretches: tuple[int, Beat]) -> list[tuple[float, Beat]]:
    beats = [beat for seconds, beat in stretches for beat in [beat] * seconds]
    return [(float(now), beat) for now, beat in enumerate(beats)]


def test_silence_is_a_hang_after_the_limit() -> None:
    beats = every_second((30, Beat(5, 4, STEPPING)))
    assert looks(HangWatch(10.0, 1.0), beats)[0] == 11.0


def test_before_the_first_step_it_is_one_after_ten_times_as_long() -> None:
    beats = every_second((150, Beat(0, -1, QUIET)))
    assert looks(HangWatch(10.0, 1.0), beats)[0] == 101.0


def test_a_pause_that_was_survived_doubles_what_is_allowed() -> None:
    beats = every_second((9, Beat(5, 4, STEPPING)), (40, Beat(6, 5, STEPPING)))
    assert looks(HangWatch(10.0, 1.0), beats)[0] == 9 + 17.0


def test_nothing_is_a_hang_after_the_guard_was_closed_and_without_a_limit() -> None:
    assert looks(HangWatch(1.0, 1.0), every_second((500, Beat(5, 4, CLOSED)))) == []
    assert looks(HangWatch(None, 1.0), every_second((500, Beat(5, 4, STEPPING)))) == []


def test_a_machine_that_slept_is_no_hang() -> None:
    beats = [(0.0, Beat(5, 4, STEPPING)), (1.0, Beat(5, 4, STEPPING)), (9000.0, Beat(5, 4, STEPPING))]
    assert looks(HangWatch(10.0, 1.0), beats) == []


@given(st.lists(st.floats(0.1, 9.9), max_size=30))
def test_whoever_gives_a_sign_in_time_never_hangs(pauses: list[float]) -> None:
    watch, now = HangWatch(10.0, 5.0), 0.0
    for signs, pause in enumerate(pauses, start=1):
        now += pause
        assert watch.look(Beat(signs, signs, STEPPING), now) is None


def test_what_is_handed_over_comes_back_the_same(tmp_path) -> None:
    attempt = Attempt(
        number=3,
        last=False,
        seed=4,
        lr_scale=0.25,
        init="lsuv",
        clip=1.5,
        standings={"r": Standing(1, 2, 7, 9, True, (1, 1), (0, 2)), "1:q": Standing()},
        run_path=tmp_path / "run.sqlite",
        resume=tmp_path / "run.sqlite",
    )
    handover = Handover(tmp_path)
    heartbeat = handover.offer(attempt)
    assert handover.attempt() == attempt
    assert (heartbeat.read(), handover.begun(), handover.ended()) == (Beat(), None, None)
    end = End("restart", 7, "r", "why", {"lr": 0.5, "init": "lsuv"}, attempt.standings)
    handover.end(end)
    assert handover.ended() == end
    assert [handover.claim(), handover.claim()] == [True, False]
    handover.begin(3, tmp_path / "run.sqlite")
    assert handover.ended() is None
    heartbeat.step(8)
    heartbeat.close()
    assert heartbeat.read() == Beat(2, 8, CLOSED)
    handover.offer(attempt)
    assert handover.begun() is None
