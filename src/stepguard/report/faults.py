"""Faults of the guard itself, and of its set-up: each is said once, and the training goes on."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

from stepguard.errors import StepguardWarning

Told = TypeVar("Told")


class Faults:
    """Says what is wrong with the guard, each thing once.

    With `strict` a fault is raised instead, for tests.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._said: set[str] = set()
        self.whose = ""
        """What stands before each: the rank, where it is not the one that prints."""

    def __call__(self, fault: Exception) -> None:
        """Report an exception inside the guard, with the place where it happened."""
        if self._strict:
            raise fault
        frame = traceback.extract_tb(fault.__traceback__)[-1:]
        at = f" at {frame[0].filename}:{frame[0].lineno}" if frame else ""
        self.say(
            f"a fault inside stepguard, the training goes on: {type(fault).__name__}: {fault}{at}",
            key=f"{type(fault).__name__}{at}",
        )

    def tell(self, listeners: list[Callable[[Told], object]], told: Told) -> None:
        """Call all listeners; one that fails is reported, and not called again."""
        for listener in list(listeners):
            try:
                listener(told)
            except Exception as fault:
                listeners.remove(listener)
                self(fault)

    def say(self, text: str, *, key: str | None = None) -> None:
        """Warn of something, unless it was said before; `key` tells what counts as the same."""
        if (key or text) in self._said:
            return
        self._said.add(key or text)
        try:
            warnings.warn(f"stepguard: {self.whose}{text}", StepguardWarning, stacklevel=2)
        except StepguardWarning as warning:
            # Warnings are errors here, but no fault of the guard may end a training.
            if self._strict:
                raise
            sys.stderr.write(f"{warning}\n")
