"""The loop that tries a training until one attempt ends well.

Flow: in goes the user's function; it is called with one attempt after another, each with the remedy that a
rule asked for, until one returns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from stepguard.errors import RestartRequested, StepguardError
from stepguard.recover.attempt import CURRENT, Attempt

Result = TypeVar("Result")


def supervise(train: Callable[[Attempt], Result], attempts: int = 3, seed: int = 0) -> Result:
    """Call `train(attempt)` until an attempt ends well, and return what it returned.

    `train` builds model and optimizer anew and wraps them by `watch`, which applies the attempt's remedy. The
    generators of python, numpy and torch are seeded with `attempt.seed` before each.

    Raises:
        RestartRequested: a rule asked for one more attempt than there are.
        TrainingHalted: a rule halted the training.
    """
    if attempts < 1:
        raise StepguardError(f"supervise: attempts must be at least 1, got {attempts}")
    attempt = Attempt(seed=seed)
    while True:
        attempt.last = attempt.number >= attempts
        token = CURRENT.set(attempt)
        try:
            _seed(attempt.seed)
            result = train(attempt)
            _close(attempt, "completed")
            return result
        except RestartRequested as request:
            _close(attempt, f"restart: {request.rule}")
            if attempt.last:
                raise
            remedy = request.remedy
        except BaseException as fault:
            _close(attempt, f"error: {type(fault).__name__}: {fault}")
            raise
        finally:
            CURRENT.reset(token)
        attempt = attempt.next(remedy)


def _close(attempt: Attempt, outcome: str) -> None:
    for guard in attempt.guards:
        guard.close(outcome)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
