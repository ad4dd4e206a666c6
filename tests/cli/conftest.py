"""Runs of `stepguard run` over real processes, which speak to it as a guard does but need no torch."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PREAMBLE = """
import os, signal, subprocess, sys, time
from stepguard.errors import RestartRequested, TrainingHalted
from stepguard.recover.attempt import current_attempt
from stepguard.recover.decision import Standing

class Handle:
    def remove(self): pass

attempt = current_attempt()
link = attempt.link
print("attempt", attempt.number, attempt.last, attempt.lr_scale, attempt.init, attempt.seed, flush=True)

def steps(first, last, pause=0.0):
    link.begin(None, lambda hook: Handle())
    for step in range(first, last):
        if link.stopping:
            print("snapshot at", step, flush=True)
            raise link.stopping
        link.step(step)
        time.sleep(pause)

def restart(**remedy):
    return RestartRequested("because", step=7, rule="r", remedy=remedy)
"""


class Run:
    """A `stepguard run` of a small script."""

    def __init__(self, folder: Path, script: str, *options: str, under: tuple[str, ...] = ()) -> None:
        path = folder / "script.py"
        path.write_text(PREAMBLE + script, encoding="utf-8")
        python = sys.executable
        command = [*under, python, "-m", "stepguard", "run", *options, "--", python, str(path)]
        # A shell lets what it starts in the background ignore SIGINT, and children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        signal.signal(signal.SIGINT, before)

    def line(self) -> str:
        """The next line that the training prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup

    def begin(script: str, *options: str, under: tuple[str, ...] = ()) -> Run:
        runs.append(Run(tmp_path, script, *options, under=under))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.communicate()
    signal.signal(signal.SIGHUP, before)
