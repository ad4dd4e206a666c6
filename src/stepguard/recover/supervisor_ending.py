"""How an attempt ended, told apart in words. Pure: what the process left in, what a person reads out."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace
from typing import Literal

from stepguard.recover.handover import End

HALTED, ASKED = 70, 75
"""Exit codes: halted by a rule; more is to be done, but no attempts are left."""
OUT_OF_MEMORY = re.compile(r"MemoryError|out of memory|can't allocate memory", re.IGNORECASE)
"""Of words of an error: python, torch on any device, and the system say it so."""
HUNG = "hung"
_SIGNALS = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error, which a full /dev/shm gives, too",
    signal.SIGABRT: "aborted",
    signal.SIGFPE: "floating point exception",
    signal.SIGILL: "illegal instruction",
}


@dataclass(frozen=True)
class Left:
    """What an attempt left behind."""

    code: int
    """Of the process: its exit code, or minus the signal that killed it."""
    end: End | None
    """What the training itself told."""
    step: int
    """The last step that came to the guard; -1 for none."""
    hung: float | None = None
    """Seconds without a sign of life, after which it was ended."""
    passed_on: signal.Signals | None = None
    """The signal that the supervisor passed on to it."""
    out_of_memory: bool = False
    """Whether the kernel has killed a process for memory meanwhile."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and what the supervisor exits with if nothing follows."""

    kind: Literal["fine", "restart", "halt", "stopped", "hang", "crash"]
    code: int
    step: int
    words: str

    def failed_like(self, other: Ending | None) -> bool:
        """Whether another attempt failed at the same step in the same way."""
        if other is None:
            return False
        return (self.kind, self.step, self.words) == (other.kind, other.step, other.words)


def judge(left: Left) -> Ending:
    """Tell how an attempt ended. What a rule asked for counts, whatever the script makes of the exception."""
    end = left.end
    if left.passed_on is not None and (left.code or end is not None):
        return _stopped(left.passed_on, left.step)
    if end is not None and end.kind == "restart":
        return Ending("restart", ASKED, end.step, f"rule {end.cause} asks for a restart")
    if end is not None and end.kind == "halt":
        return Ending("halt", HALTED, end.step, f"halted by rule {end.cause}")
    return _unasked(left)


def _unasked(left: Left) -> Ending:
    code = left.code if left.code >= 0 else 128 - left.code
    failed = left.end is not None and left.end.kind == "error"
    if left.hung is not None and failed:  # the error came first; on its way out the process hung
        return Ending("crash", 1, left.step, _crash(replace(left, code=1), 1))
    if left.hung is not None:
        return Ending("hang", code, left.step, HUNG)
    if code == 0:
        return Ending("fine", 0, left.step, "completed")
    if left.code == -signal.SIGINT:
        return _stopped(signal.SIGINT, left.step)
    return Ending("crash", code, left.step, _crash(left, code))


def _stopped(number: signal.Signals, step: int) -> Ending:
    return Ending("stopped", stop_code(number), step, f"stopped by {number.name}")


def stop_code(number: signal.Signals) -> int:
    """What the supervisor exits with where a signal has stopped the run: SIGUSR1 asks for more, later."""
    return ASKED if number == signal.SIGUSR1 else 128 + number


def _crash(left: Left, code: int) -> str:
    if left.end is not None and left.end.kind == "error" and left.code > 0:
        memory = "out of memory: " if OUT_OF_MEMORY.search(left.end.cause) else ""
        return f"{memory}{_first_line(left.end.cause)}"
    if code <= 128 or code - 128 not in set(signal.Signals):
        return f"exit code {code}"
    number = signal.Signals(code - 128)
    if number == signal.SIGKILL:
        if left.out_of_memory:
            return "out of memory: killed by the kernel (SIGKILL)"
        return "killed (SIGKILL: by a person, a scheduler or a memory limit)"
    known = _SIGNALS.get(number)
    return f"killed by {number.name}" if known is None else f"{known} ({number.name})"


def _first_line(text: str, most: int = 200) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= most else f"{line[:most]}..."
