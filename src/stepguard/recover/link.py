"""What a guard tells a supervisor, where there is none: nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from stepguard.errors import TrainingStopped
from stepguard.recover.decision import Standing


class Removable(Protocol):
    """The handle of a hook."""

    def remove(self) -> None:
        """Take the hook off."""
        ...


Follow = Callable[[Callable[..., None]], Removable]
"""Registers a hook that is called before each forward pass of a model."""


def leaving(number: int) -> BaseException:
    """What a training is left by that a signal has asked to end."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def asked_by(stopping: BaseException | None) -> int:
    """The number of the signal that asked for it; 0 for none."""
    if isinstance(stopping, SystemExit):
        return int(stopping.code or 128) - 128
    return signal.SIGINT if stopping is not None else 0


class Link:
    """What a guard tells a supervisor. This one has none, and does nothing."""

    stopping: BaseException | None = None
    """To be raised at the next step boundary, once a snapshot is written: a signal asked for the end."""

    def begin(self, run_path: Path | None, follow: Follow) -> None:
        """A guard was made; the forward passes of its model are signs of life, also while evaluating."""

    def step(self, step: int) -> None:
        """A step has come to the guard."""

    def alive(self, *_: Any) -> None:
        """A sign of life that is no step."""

    def stop(self, stopped: TrainingStopped, standings: Mapping[str, Standing]) -> None:
        """A rule ends the attempt."""

    def close(self) -> None:
        """The guard was closed: no more steps are to be expected."""
