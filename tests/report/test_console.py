from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from dataclasses import replace

import pytest
from rich.console import Console

from stepguard.recover.decision import Decision
from stepguard.report.console import ConsoleReporter
from stepguard.report.diagnosis import Diagnosis, diagnose
from stepguard.report.summary import AttemptSummary, Summary
from stepguard.rules.alert import Change
from stepguard.rules.rule import Rule
from stepguard.signals import Frame, Layer


@pytest.fixture
def diagnosis(crash_rule: Rule, crash: Change, layers: list[Layer], restart: Decision) -> Diagnosis:
    return diagnose(crash_rule, [crash], layers, restart)


def tell(reporter: ConsoleReporter, diagnosis: Diagnosis, crash: Change, layers: list[Layer]) -> None:
    """One of each event."""
    reporter.frame(Frame(41, {"loss": 1.0}), layers)
    reporter.changes([crash])
    reporter.diagnosis(diagnosis)
    reporter.changes([Change(60, "rising-crash", None, "inactive", "critical")])
    reporter.note("learning rate\nx0.5")
    reporter.summary(Summary((AttemptSummary(1, 61, "completed"),)))
    reporter.close()


def test_in_a_pipe_each_event_is_one_plain_line(
    diagnosis: Diagnosis, crash: Change, layers: list[Layer]
) -> None:
    file = io.StringIO()
    tell(ConsoleReporter(Console(file=file, width=40)), diagnosis, crash, layers)
    assert file.getvalue().splitlines() == [
        str(diagnosis),
        "stepguard: step 60: rising-crash is over at 4 layers",
        "stepguard: learning rate x0.5",
        "stepguard: attempt 1: 61 steps, completed",
    ]


def test_of_many_lines_the_first_says_why(diagnosis: Diagnosis) -> None:
    file = io.StringIO()
    reporter = ConsoleReporter(Console(file=file))
    for step in range(3):
        reporter.diagnosis(replace(diagnosis, causes=(f"the batch of step {step}",)))
    reporter.diagnosis(replace(diagnosis, causes=("raw inputs",)))
    reporter.close()
    why = [line.partition("0.0031")[2].partition(" ->")[0] for line in file.getvalue().splitlines()]
    cure = "try: halve the learning rate"
    assert why == [f" (likely: the batch of step 0; {cure})", "", "", f" (likely: raw inputs; {cure})"]


def test_a_mark_is_shown_once_another_guard_was_open_beside_it(
    diagnosis: Diagnosis, crash: Change, layers: list[Layer]
) -> None:
    def lines(reporter: ConsoleReporter, file: io.StringIO) -> list[str]:
        tell(reporter, diagnosis, crash, layers)
        return [line.split(":")[0] for line in file.getvalue().splitlines()]

    files = [io.StringIO() for _ in range(4)]
    consoles = [Console(file=file) for file in files]
    assert set(lines(ConsoleReporter(consoles[0], "Critic"), files[0])) == {"stepguard"}
    both = [ConsoleReporter(console, "Critic") for console in consoles[1:3]]
    assert set(lines(both[0], files[1])) == {"stepguard[Critic]"}
    assert set(lines(both[1], files[2])) == {"stepguard[Critic 2]"}, "though it is alone by now"
    assert set(lines(ConsoleReporter(consoles[3], "Critic"), files[3])) == {"stepguard"}


def test_on_a_terminal_the_mark_stands_above_what_is_told_in_full(
    diagnosis: Diagnosis, crash: Change, layers: list[Layer]
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=90, force_terminal=True, color_system="truecolor", _environ={})
    reporter, other = (
        ConsoleReporter(console, "Critic"),
        ConsoleReporter(Console(file=io.StringIO()), "Actor"),
    )
    tell(reporter, diagnosis, crash, layers)
    other.close()
    plain = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).splitlines()]
    assert plain[plain.index(f"critical[rising-crash]: {crash.message}") - 1] == "stepguard[Critic]:"
    assert plain[plain.index("stepguard: 1 attempt, 61 steps") - 1] == "stepguard[Critic]:"
    assert any(line.startswith("stepguard[Critic] ─") for line in plain), "the board"


def test_what_the_streams_encoding_lacks_is_replaced(layers: list[Layer]) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    ConsoleReporter(Console(file=file)).note("größer")
    file.flush()
    assert raw.getvalue() == b"stepguard: gr??er\n"


def test_on_a_terminal_the_diagnosis_is_told_in_full(
    diagnosis: Diagnosis, crash: Change, layers: list[Layer]
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=90, force_terminal=True, color_system="truecolor", _environ={})
    tell(ConsoleReporter(console), diagnosis, crash, layers)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "= cures:   1. halve the learning rate" in plain
    assert "step 41   loss ▄ 1" in plain, "the board"
    assert "\x1b[1;38;2;214;69;69mcritical[rising-crash]" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K"), "the board is wiped at the end"


def test_a_frame_is_drawn_only_when_due(layers: list[Layer]) -> None:
    file = io.StringIO()
    reporter = ConsoleReporter(Console(file=file, width=90, force_terminal=True, _environ={}))
    reporter.frame(Frame(0, {"loss": 1.0}), layers)
    drawn = len(file.getvalue())
    assert drawn > 0
    for step in range(1, 100):
        reporter.frame(Frame(step, {"loss": 1.0}), layers)
    assert len(file.getvalue()) == drawn
    reporter.close()


def test_streams_that_are_no_terminal_are_left_alone(layers: list[Layer]) -> None:
    before = sys.stdout, sys.stderr
    reporter = ConsoleReporter(Console(file=io.StringIO(), force_terminal=True, _environ={}))
    reporter.frame(Frame(0, {"loss": 1.0}), layers)
    assert (sys.stdout, sys.stderr) == before
    reporter.close()


SCRIPT = """
import sys, time
from rich.console import Console
from stepguard.report.console import ConsoleReporter
from stepguard.signals import Frame, Layer

def frame(step):
    reporter.frame(Frame(step, {"loss": 1.0}), [Layer("a", "Linear")])

reporter = ConsoleReporter(Console(stderr=True))
frame(0)
"""


def in_a_terminal(body: str) -> str:
    """What a script writes to a real pseudo-terminal of 24 lines and 80 columns."""
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    command = [sys.executable, "-c", SCRIPT + textwrap.dedent(body)]
    process = subprocess.Popen(command, stdin=worker, stdout=worker, stderr=worker, env=environment)
    os.close(worker)
    written = b""
    try:
        while chunk := os.read(main, 65536):
            written += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(main)
    process.wait()
    return written.decode()


UP = "\x1b[?25l"
"""The cursor is hidden as long as the board stands."""
DOWN = "\x1b[?25h"


def board(step: int) -> str:
    return f"\x1b[1m{step}\x1b[0m\x1b[2m   loss "


def test_prints_go_above_the_board() -> None:
    written = in_a_terminal("""
        print("hello from stdout")
        print("hello from stderr", file=sys.stderr)
        time.sleep(2.1)  # by then a redraw is due, however slow this machine is
        frame(1)
        reporter.close()
        print("after", sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
    """)
    before, _, rest = written.partition("hello from stdout")
    assert before.endswith("\x1b[2K"), "the board is wiped first"
    assert board(0) in rest.partition("hello from stderr")[0], "and drawn again below"
    assert board(1) in rest
    assert rest.rstrip().endswith("after True True")
    assert (written.count(UP), written.count(DOWN)) == (1, 1)


def test_a_progress_bar_takes_the_terminal_and_gives_it_back() -> None:
    written = in_a_terminal("""
        from tqdm import tqdm
        for _ in tqdm(range(2), desc="validation"):
            time.sleep(1.05)
        frame(1)
        reporter.close()
    """)
    up, bars, again = written.partition("validation: ")[0], written, written.rpartition("2/2 [")[2]
    assert (up.count(UP), up.count(DOWN)) == (1, 1), "the board is down before the bar draws"
    assert "\r" + "validation: 100%" in bars
    assert again.count(UP) == 1
    assert board(1) in again


def test_under_a_progress_bar_events_are_printed_without_a_board() -> None:
    written = in_a_terminal("""
        reporter.close()
        reporter = ConsoleReporter(Console(stderr=True))
        from tqdm import tqdm
        for step in tqdm(range(3), desc="epoch"):
            frame(step)
            if step == 1:
                reporter.note("half way")
        reporter.close()
    """)
    bars = written.partition("epoch: ")[2]
    assert UP not in bars
    before, _, after = bars.partition("stepguard: ")
    assert before.endswith("\r\x1b[2m"), "the bar is wiped first"
    assert "half way" in after.splitlines()[0]
    assert "epoch: " in after


def test_another_live_display_keeps_the_terminal() -> None:
    written = in_a_terminal("""
        reporter.close()
        reporter = ConsoleReporter(Console(stderr=True))
        from rich.progress import Progress
        with Progress() as progress:
            task = progress.add_task("theirs", total=2)
            for step in range(2):
                frame(step)
                progress.advance(task)
                reporter.note("above it")
        reporter.close()
    """)
    assert written.count(UP) == 2, "the first board and their display"
    assert written.count("above it") == 2
    assert written.rpartition("above it")[2].count("theirs") >= 1


def test_of_two_guards_one_has_the_board_and_both_speak_above_it() -> None:
    written = in_a_terminal("""
        other = ConsoleReporter(Console(stderr=True), "Critic")
        for step in range(3):
            for each in (reporter, other):
                each.frame(Frame(step, {"loss": 1.0}), [Layer("a", "Linear")])
                each.note(f"step {step}")
        reporter.close()
        time.sleep(2.1)  # by then a redraw is due
        other.frame(Frame(3, {"loss": 1.0}), [Layer("a", "Linear")])
        other.close()
        print("after", sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
    """)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert plain.count("stepguard[Critic]: step ") == plain.count("stepguard[model]: step ") == 3
    first, _, rest = written.partition(DOWN)
    assert (first.count(UP), rest.count(UP)) == (1, 1), "the second board comes when the first is gone"
    assert rest.rstrip().endswith("after True True")


def test_an_exception_leaves_the_terminal_clean() -> None:
    written = in_a_terminal("""
        raise RuntimeError("boom")
    """)
    assert "RuntimeError: boom" in written
    assert written.rfind(DOWN) > written.rfind(UP)
