"""Attempts at a training: what each begins with, and the loop that tries until one ends well."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from stepguard.errors import RestartRequested, StepguardError
from stepguard.recover.decision import Standing

Result = TypeVar("Result")


class _Closable(Protocol):
    def close(self, outcome: str = ...) -> None: ...


@dataclass
class Attempt:
    """One try at the training. `watch` reads it inside `supervise` and applies it by itself."""

    number: int = 1
    seed: int = 0
    lr_scale: float = 1.0
    """Factor on every learning rate."""
    init: str | None = None
    """How the model is initialised anew: `kaiming`, `lsuv`, or None for as it comes."""
    clip: float | None = None
    """Largest Euclidean norm of all gradients together; None for no clipping."""
    standings: Mapping[str, Standing] = field(default_factory=dict[str, Standing])
    """Where the rules stand on their ladders at the beginning."""
    run_path: Path | None = None
    """The run file of the attempts before, which this one goes on with."""
    past: tuple[Any, ...] = ()
    """What the attempts before left for the closing summary."""
    guards: list[_Closable] = field(default_factory=list["_Closable"], repr=False)
    """Guards opened inside this attempt, closed when it ends."""

    def next(self, remedy: Mapping[str, float | str]) -> Attempt:
        """The attempt after this one, with a remedy as a rule file has it: `lr`, `init`, `clip`, `seed`."""
        clips = [float(clip) for clip in (self.clip, remedy.get("clip")) if clip is not None]
        init = remedy.get("init", self.init)
        return Attempt(
            number=self.number + 1,
            seed=self.seed + int(remedy.get("seed", 0)),
            lr_scale=self.lr_scale * float(remedy.get("lr", 1.0)),
            init=None if init is None else str(init),
            clip=min(clips) if clips else None,
            standings={name: standing.next_attempt() for name, standing in self.standings.items()},
            run_path=self.run_path,
            past=self.past,
        )


_current: ContextVar[Attempt | None] = ContextVar("stepguard_attempt", default=None)


def current_attempt() -> Attempt | None:
    """The attempt that `supervise` is making, or None outside of it."""
    return _current.get()


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
        token = _current.set(attempt)
        try:
            _seed(attempt.seed)
            result = train(attempt)
            _close(attempt, "completed")
            return result
        except RestartRequested as request:
            _close(attempt, f"restart: {request.rule}")
            if attempt.number >= attempts:
                raise
            remedy = request.remedy
        except BaseException as fault:
            _close(attempt, f"error: {type(fault).__name__}: {fault}")
            raise
        finally:
            _current.reset(token)
        attempt = attempt.next(remedy)


def _close(attempt: Attempt, outcome: str) -> None:
    for guard in attempt.guards:
        guard.close(outcome)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
