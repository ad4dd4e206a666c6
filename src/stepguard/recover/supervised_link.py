"""The training's end of `stepguard run`: tells the supervisor steps and ends, and hears its signals.

Flow: in come the guard's steps and how it ends; out go the heartbeat and the word of the end. A signal that
asks the training to end is kept until the next step boundary, where the guard can leave a snapshot.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from stepguard.errors import RestartRequested, TrainingStopped
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Standing
from stepguard.recover.handover import FOLDER, End, Handover, Heartbeat
from stepguard.recover.link import Follow, Link, Removable, leaving


class SignalLink(Link):
    """Keeps the signals that ask the training to end until a step is over. Of a rank that does not report."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._stepping = False
        """Between its first step and the end of the guard."""
        self._keep(signal.SIGTERM, signal.SIG_DFL)
        self._keep(signal.SIGINT, signal.default_int_handler)
        self._shown = sys.excepthook
        sys.excepthook = self._except

    def _keep(self, number: signal.Signals, default: Any) -> None:
        """Keep a signal until the step boundary, unless the script has its own way with it."""
        with suppress(ValueError):  # not the main thread: signals stay as they are
            if signal.getsignal(number) is default:
                signal.signal(number, self._hear)

    def step(self, step: int) -> None:
        """A step has come to the guard."""
        self._stepping = True

    def close(self) -> None:
        """The guard was closed: a signal ends the process at once again."""
        self._stepping = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Keep the signal; what cannot be kept does what it did before: in a worker, or a second Ctrl-C."""
        if os.getpid() == self._pid and self.stopping is None and self._stepping:
            self.stopping = leaving(number)
            self._stops(number)
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        elif os.getpid() != self._pid or self.stopping is None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # A launcher passes the signal on that this process has got already.

    def _stops(self, number: int) -> None:
        """A signal was kept."""

    def _except(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """What a rule ends needs no traceback: `stepguard run` says it."""
        if not isinstance(error, TrainingStopped):
            self._shown(kind, error, trace)


class SupervisedLink(SignalLink):
    """Tells the supervisor through the folder it laid out. What goes wrong there costs the telling only."""

    def __init__(self, handover: Handover, attempt: Attempt) -> None:
        self._handover, self._attempt = handover, attempt
        self._beat = Heartbeat(handover.folder)
        self._hooks: list[Removable] = []
        super().__init__()

    def begin(self, run_path: Path | None, follow: Follow) -> None:
        """A guard was made. Unless a signal waits, what was told of an end is undone: the script goes on."""
        self._hooks.append(follow(self.alive))
        if self.stopping is not None:
            return
        with suppress(OSError):
            self._handover.begin(self._attempt.number, run_path)

    def step(self, step: int) -> None:
        """A step has come to the guard."""
        super().step(step)
        self._beat.step(step)

    def alive(self, *_: Any) -> None:
        """A sign of life that is no step."""
        self._beat.alive()

    def stop(self, stopped: TrainingStopped, standings: Mapping[str, Standing]) -> None:
        """A rule ends the attempt: which one, and what it asks of the next."""
        said = (stopped.step, stopped.rule, stopped.diagnosis)
        if isinstance(stopped, RestartRequested):
            self._end(End("restart", *said, remedy=stopped.remedy, standings=standings))
        else:
            self._end(End("halt", *said, standings=standings))

    def close(self) -> None:
        """The guard was closed: no more steps are to be expected."""
        super().close()
        self._beat.close()
        while self._hooks:
            self._hooks.pop().remove()

    def _end(self, end: End) -> None:
        with suppress(OSError):
            self._handover.end(end)

    def _stops(self, number: int) -> None:
        self._end(End("signal", self._beat.read().step, signal.Signals(number).name))

    def _except(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Tell the supervisor what the script did not catch; an end that was told needs no traceback."""
        told = self._handover.ended()
        if told is not None and isinstance(error, TrainingStopped | KeyboardInterrupt):
            return
        if told is None and isinstance(error, Exception):
            self._end(End("error", self._beat.read().step, f"{kind.__name__}: {error}"))
        self._shown(kind, error, trace)


def receive() -> Attempt | None:
    """The attempt that `stepguard run` hands to this process; None where nobody supervises it.

    One process reports to the supervisor: of several ranks that of rank 0, otherwise the first that asks. The
    others have the attempt, and run files of their own.
    """
    folder = os.environ.get(FOLDER)
    if folder is None:
        return None
    handover = Handover(Path(folder))
    try:
        attempt = handover.attempt()
    except (OSError, ValueError):
        return None
    attempt.handed = True
    with suppress(OSError):
        if _rank() == 0 and handover.claim():
            attempt.link = SupervisedLink(handover, attempt)
            return attempt
    attempt.run_path = None
    attempt.link = SignalLink()
    return attempt


def _rank() -> int:
    """The rank of this process, as far as it is known yet. Without importing torch."""
    found = sys.modules.get("torch.distributed")
    if found is not None and found.is_available() and found.is_initialized():
        return found.get_rank()
    told = os.environ.get("RANK", "0")
    return int(told) if told.isdecimal() else 0
