"""The loop that tries a training until one attempt ends well.

Flow: in goes the user's function; it is called with one attempt after another, each with the remedy that a
rule asked for, until one returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from stepguard.errors import RestartRequested, StepguardError, StepguardWarning, TrainingStopped
from stepguard.recover.attempt import CURRENT, Attempt, current_attempt
from stepguard.recover.contest import Race
from stepguard.recover.remedies import seed_generators

Result = TypeVar("Result")


def supervise(
    train: Callable[[Attempt], Result], attempts: int = 3, seed: int = 0, budget: float = 3.0
) -> Result:
    """Call `train(attempt)` until an attempt ends well, and return what the best one returned.

    `train` builds model and optimizer anew and wraps them by `watch`, which applies the attempt's remedy. The
    generators of python, numpy and torch are seeded with `attempt.seed` before each.

    An attempt whose pace was chosen by `restart: auto` may end far from the best. While attempts are left,
    all together take at most `budget` times the steps of one, and a twentieth of the first loss or more is
    left, challengers follow it at other paces, the faster ones from another initialisation.
    A challenger that does worse is ended before `train` returns, at its last step at the latest: what `train`
    leaves at its end is that of the best attempt so far. A budget of 1 takes the first attempt that ends.

    Under `stepguard run` there is one call: it hands the attempt over, and makes the next in a new process.

    Raises:
        StepguardError: an argument cannot be used.
        RestartRequested: a rule asked for one more attempt than there are.
        TrainingHalted: a rule halted the training.
    """
    _check(attempts, seed, budget)
    attempt, race = _first(seed), Race[Result](budget)
    asked = False
    while True:
        if not attempt.handed:
            attempt.last = attempt.number >= attempts
        token = CURRENT.set(attempt)
        try:
            seed_generators(attempt.seed)
            result = train(attempt)
            if asked and not attempt.guards:
                _say_ignored(attempt)
            _close(attempt, "completed")
            race.completed(attempt, result)
            following = race.challenger(attempt)
        except TrainingStopped as stopped:
            _close(attempt, f"restart: {stopped.rule}")
            race.over(attempt)
            following = race.challenger(attempt)
            if race.best is None:
                if not isinstance(stopped, RestartRequested) or attempt.last or attempt.handed:
                    raise
                following = attempt.next(stopped.remedy)
        except BaseException as fault:
            _close(attempt, f"error: {type(fault).__name__}: {fault}")
            raise
        finally:
            CURRENT.reset(token)
        if following is None:
            return race.result
        asked = bool(attempt.guards)
        attempt = following


def _check(attempts: Any, seed: Any, budget: Any) -> None:
    for name, value, least in (("attempts", attempts, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise StepguardError(f"{name}: expected a whole number from {least}, got {value!r}")
    if not isinstance(budget, int | float) or not budget > 0:
        raise StepguardError(f"budget: expected a number above 0, got {budget!r}")


def _first(seed: int) -> Attempt:
    """The attempt that `stepguard run` hands to this process, to one call of `supervise`; else a new one."""
    handed = current_attempt()
    if handed is None or not handed.handed or handed.guards:
        return Attempt(seed=seed)
    handed.seed += seed
    return handed


def _say_ignored(attempt: Attempt) -> None:
    """A guard asked for this attempt, and its remedy went unheard."""
    warnings.warn(
        f"stepguard: attempt {attempt.number} ended without a guard, so its remedy was not applied:"
        " train(attempt) should build the model anew and call stepguard.watch",
        StepguardWarning,
        stacklevel=3,
    )


def _close(attempt: Attempt, outcome: str) -> None:
    for guard in attempt.guards:
        guard.close(outcome)
