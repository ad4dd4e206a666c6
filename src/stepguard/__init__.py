"""A guard around `optimizer.step()`: watches every layer, says what goes wrong, and acts by itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepguard.errors import (
        RestartRequested,
        RuleFileError,
        RunFileError,
        StepguardError,
        StepguardWarning,
        TrainingHalted,
        TrainingStopped,
    )
    from stepguard.guard import Guard, watch
    from stepguard.recover.attempt import Attempt
    from stepguard.recover.supervise import supervise

__all__ = [
    "Attempt",
    "Guard",
    "RestartRequested",
    "RuleFileError",
    "RunFileError",
    "StepguardError",
    "StepguardWarning",
    "TrainingHalted",
    "TrainingStopped",
    "supervise",
    "watch",
]

_HOMES = {
    "Guard": "stepguard.guard",
    "watch": "stepguard.guard",
    "Attempt": "stepguard.recover.attempt",
    "supervise": "stepguard.recover.supervise",
}
"""Names whose modules need torch, which the command line does without: imported when they are asked for."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "stepguard.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
