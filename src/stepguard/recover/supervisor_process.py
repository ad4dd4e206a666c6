"""One training as a process, and everything that it starts: begun, signalled, ended without a trace.

The process leads a session of its own and keeps the terminal, pipes and files that the supervisor has, so its
output passes through untouched; a Ctrl-C in the terminal reaches the supervisor alone.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from stepguard.errors import StepguardError

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER` of Linux' prctl(2): orphans below this process become its children."""
_GUARDIAN = """
trap '' INT TERM HUP USR1
while read -r pid; do kept=$pid; done
[ -n "$kept" ] || exit 0
kill -s TERM "$kept"; sleep "$0"; kill -s KILL -- "-$kept"
"""
"""Ends the training should the supervisor be killed: then its standard input, a pipe, comes to its end."""


class Inbox:
    """The signals that come to the supervisor, one after another. Those that are ignored stay so (nohup)."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*_PASSED_ON, signal.SIGCHLD):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _note)

    def wait(self, seconds: float | None) -> list[signal.Signals]:
        """Wait for a signal, at most so long; the signals to be passed on that have come by then."""
        select.select([self._reader], [], [], seconds)
        try:
            came = os.read(self._reader, 1024)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in came if number in _PASSED_ON]


def _note(_number: int, _frame: FrameType | None) -> None:
    """Python writes the signal to the pipe only where a handler is set."""


class Guardian:
    """A small process that outlives the supervisor, for as long as it takes to end the training.

    Args:
        grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(self, grace: float) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, str(grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def keep(self, pid: int | None) -> None:
        """Take care of this training from now on, or of none."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{pid or ''}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Let it go."""
        self.keep(None)
        self._process.communicate()


class Training:
    """A running command.

    Args:
        command: the program and its arguments.
        environment: added to the supervisor's own.
        guardian: ends the command if the supervisor is killed.

    Raises:
        StepguardError: the command cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], guardian: Guardian) -> None:
        _adopt_orphans()
        self._guardian = guardian
        try:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, start_new_session=True
            )
        except OSError as error:
            raise StepguardError(f"{command[0]}: cannot be started ({error.strerror})") from error
        guardian.keep(self.pid)

    @property
    def pid(self) -> int:
        """Of the process, which is the number of its session and group, too."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it runs."""
        return self._process.poll()

    def gone(self) -> bool:
        """Whether it has ended, and all that it leaves behind."""
        return self.poll() is not None and not self._left()

    def send(self, number: signal.Signals, reporting: int | None = None) -> None:
        """Send a signal to it, and to the process that reports, where a launcher stands before that.

        Data workers get none: what ends them ends the training before it could leave a snapshot.
        """
        for pid in {self.pid, reporting or self.pid}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def dump(self, patience: float) -> None:
        """Have every process of it print its stacks and end, which SIGABRT does under python's faulthandler.

        Of several ranks it is often another one that hangs than the one that reports. One after the other:
        a stack is printed in many small pieces, and those of two processes would mix.

        Args:
            patience: seconds that they are waited for, all together.
        """
        until = time.monotonic() + patience
        for pid in [self.pid, *_below(self.pid)]:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGABRT)
            while _runs(pid) and time.monotonic() < until:
                time.sleep(0.01)

    def clear(self, grace: float) -> int:
        """End whatever is still there of it: SIGTERM, and SIGKILL later. Returns its exit code."""
        until = time.monotonic() + grace
        if not self.gone():
            self._send_all(signal.SIGTERM)
        while not self.gone():
            if time.monotonic() >= until:
                self._send_all(signal.SIGKILL)
            time.sleep(0.02)
        self._guardian.keep(None)
        code = self.poll()
        assert code is not None
        return code

    def _send_all(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        for pid in self._left():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _left(self) -> list[int]:
        """Orphans that were adopted, and are no zombies once this has returned."""
        left: list[int] = []
        for pid in _children():
            if pid in (self.pid, self._guardian.pid):
                continue
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    left.append(pid)
        return left


def _adopt_orphans() -> None:
    """Become the parent of whatever the training leaves behind, also of what left its session (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _children() -> list[int]:
    """The children of this process."""
    return _families().get(os.getpid(), [])


def _below(pid: int) -> list[int]:
    """All that a process has started, and what that has started."""
    families = _families()
    found = list(families.get(pid, []))
    for child in found:  # it grows on the way
        found += families.get(child, [])
    return found


def _runs(pid: int) -> bool:
    """Whether a process is there and not yet a zombie; False where there is no /proc."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in "ZX"
    return False


def _families() -> dict[int, list[int]]:
    """The children of each process; none where there is no /proc."""
    families: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = stat.read_text(encoding="utf-8", errors="replace")
            parent = int(text.rpartition(")")[2].split()[1])
            families.setdefault(parent, []).append(int(stat.parent.name))
    return families


def kernel_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not tell."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
