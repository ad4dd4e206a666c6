"""The process that looks after a training: begins it, restarts it, ends it. Without torch.

Flow: in come the heartbeat, the word of an attempt's end, exit codes and signals; out go attempts, one
process after another, and an exit code.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from stepguard.recover.attempt import Attempt
from stepguard.recover.handover import FOLDER, Beat, Begun, Handover, Heartbeat
from stepguard.recover.shelf import newest_certified
from stepguard.recover.supervisor_ending import Ending, Left, judge, stop_code
from stepguard.recover.supervisor_hang import HangWatch
from stepguard.recover.supervisor_process import Guardian, Inbox, Training, kernel_kills

_BACKOFF, _LONGEST_BACKOFF = 1.0, 60.0
"""Seconds before the first restart after a crash, doubled for each crash in a row, and the most."""
_TICK = 1.0
"""Seconds between two looks at the heartbeat, at most."""
_DUMP = 5.0
"""Seconds that a hung training gets to print its stacks."""
_LEFTOVERS = 5.0
"""Seconds that processes get which outlive their training."""


@dataclass(frozen=True)
class Terms:
    """What was asked of the supervisor."""

    command: Sequence[str]
    restarts: int = 3
    hang: float | None = None
    """Seconds without a sign of life after which a training is ended; None for never."""
    grace: float = 20.0
    """Seconds from a signal that is passed on to SIGKILL."""
    environment: Mapping[str, str] | None = None
    """Added to the training's."""


class Listener(Protocol):
    """Who is told what happens, to print it or to write it down."""

    def begins(self, attempt: Attempt, start: int, delay: float) -> None:
        """The start of a process follows, after so many seconds; starts count from 1."""
        ...

    def passes_on(self, number: signal.Signals, grace: float) -> None:
        """A signal was passed on to the training."""
        ...

    def hangs(self, seconds: float, step: int) -> None:
        """No sign of life for so long: the stacks follow, printed by the training itself."""
        ...

    def ended(
        self, attempt: Attempt, start: int, ending: Ending, begun: Begun | None, seconds: float
    ) -> None:
        """A process has ended; `begun` is what its training has told of itself."""
        ...

    def gives_up(self, why: str) -> None:
        """No attempt follows, and why."""
        ...


class Supervisor:
    """Makes one attempt after another.

    Args:
        terms: the command, and how long and how often it is tried.
        listener: is told what happens.
    """

    def __init__(self, terms: Terms, listener: Listener) -> None:
        self._terms, self._listener = terms, listener
        self._inbox = Inbox()
        self._guardian = Guardian(terms.grace)
        self._starts = 0
        self._stepped = False
        self._crashes = 0
        self._failed: Ending | None = None
        """The failure of the attempt before."""

    def run(self, attempt: Attempt) -> int:
        """Make attempts, beginning with this one, until one ends the run. Returns the exit code."""
        try:
            with tempfile.TemporaryDirectory(prefix="stepguard-") as folder:
                handover = Handover(Path(folder))
                while True:
                    self._starts += 1
                    attempt.last = self._starts > self._terms.restarts
                    ending = self._attempt(attempt, handover)
                    following = self._following(attempt, ending, handover)
                    if following is None:
                        return ending.code
                    stopped = self._pause(following)
                    if stopped is not None:
                        return stopped
                    attempt = following
        finally:
            self._guardian.close()

    def _attempt(self, attempt: Attempt, handover: Handover) -> Ending:
        """Make one attempt, and leave nothing of it behind."""
        began, kills = time.monotonic(), kernel_kills()
        heartbeat = handover.offer(attempt)
        environment = {FOLDER: str(handover.folder), "PYTHONFAULTHANDLER": "1"}
        training = Training(
            self._terms.command, {**environment, **(self._terms.environment or {})}, self._guardian
        )
        watched = _Watched(training, heartbeat, handover, self._terms, self._listener)
        try:
            watched.wait(self._inbox)
        finally:
            code = training.clear(_LEFTOVERS if training.poll() is not None else 0.0)
        beat = heartbeat.read()
        self._stepped |= beat.step >= 0
        ending = judge(
            Left(code, handover.ended(), beat.step, watched.hung, watched.passed_on, kernel_kills() > kills)
        )
        begun = handover.begun()
        if begun is not None and begun.run_path is not None:
            attempt.number, attempt.run_path = begun.number, Path(begun.run_path)
        self._listener.ended(attempt, self._starts, ending, begun, time.monotonic() - began)
        return ending

    def _following(self, attempt: Attempt, ending: Ending, handover: Handover) -> Attempt | None:
        """The attempt that follows such an ending, if one does."""
        if ending.kind == "restart":
            return self._remedied(attempt, handover)
        if ending.kind not in ("crash", "hang"):
            return None
        again, self._failed = ending.failed_like(self._failed), ending
        if not self._stepped:
            self._listener.gives_up("it failed before its first guarded step, and would do so again")
        elif again:
            self._listener.gives_up(f"step {ending.step} has failed twice in the same way")
        elif attempt.last:
            self._listener.gives_up("no attempts are left")
        else:
            self._crashes += 1
            return _once_more(attempt)
        return None

    def _remedied(self, attempt: Attempt, handover: Handover) -> Attempt | None:
        self._crashes, self._failed = 0, None
        end = handover.ended()
        if attempt.last or end is None:
            self._listener.gives_up("a restart is asked for, but no attempts are left")
            return None
        attempt.standings = end.standings
        return attempt.next(end.remedy)

    def _pause(self, attempt: Attempt) -> int | None:
        """Wait before an attempt, the longer the more crashes there were; the exit code if a signal came."""
        delay = min(_BACKOFF * 2 ** (self._crashes - 1), _LONGEST_BACKOFF) if self._crashes else 0.0
        self._listener.begins(attempt, self._starts + 1, delay)
        until = time.monotonic() + delay
        while True:
            for number in self._inbox.wait(max(0.0, until - time.monotonic())):
                self._listener.gives_up(f"stopped by {number.name}")
                return stop_code(number)
            if time.monotonic() >= until:
                return None


def _once_more(attempt: Attempt) -> Attempt:
    """The same attempt, gone on with at its newest snapshot; where there is none, one from the beginning."""
    run_path = attempt.run_path
    if run_path is not None and newest_certified(run_path) is not None:
        return replace(attempt, resume=run_path)
    return replace(attempt, number=attempt.number + 1, resume=None)


class _Watched:
    """One training while it runs: signals are passed on to it, and it is ended if it hangs."""

    def __init__(
        self,
        training: Training,
        heartbeat: Heartbeat,
        handover: Handover,
        terms: Terms,
        listener: Listener,
    ) -> None:
        self._training, self._heartbeat, self._handover = training, heartbeat, handover
        self._terms, self._listener = terms, listener
        self._tick = _TICK if terms.hang is None else min(_TICK, terms.hang / 10)
        self._watch = HangWatch(terms.hang, self._tick)
        self._until: float | None = None
        """When the grace after a signal ends."""
        self.passed_on: signal.Signals | None = None
        self.hung: float | None = None

    def wait(self, inbox: Inbox) -> None:
        """Return when the training has ended, or has to be killed."""
        while self._training.poll() is None:
            waits = self._until is not None or self._terms.hang is not None
            for number in inbox.wait(self._tick if waits else None):
                self._pass_on(number)
            now = time.monotonic()
            if self._until is not None and now >= self._until:
                return
            beat = self._heartbeat.read()
            seconds = self._watch.look(beat, now)
            if seconds is not None and self.passed_on is None:
                self._end_hung(seconds, beat)
                return

    def _pass_on(self, number: signal.Signals) -> None:
        """A second Ctrl-C kills at once; any other signal that comes later changes nothing."""
        if self.passed_on is not None:
            if number == signal.SIGINT:
                self._until = time.monotonic()
            return
        self.passed_on, self._until = number, time.monotonic() + self._terms.grace
        self._listener.passes_on(number, self._terms.grace)
        begun = self._handover.begun()
        self._training.send(
            signal.SIGINT if number == signal.SIGINT else signal.SIGTERM, None if begun is None else begun.pid
        )

    def _end_hung(self, seconds: float, beat: Beat) -> None:
        """Have it print its stacks."""
        self.hung = seconds
        self._listener.hangs(seconds, beat.step)
        until = time.monotonic() + _DUMP
        self._training.dump(_DUMP)
        while not self._training.gone() and time.monotonic() < until:
            time.sleep(0.02)
