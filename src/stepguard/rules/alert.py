"""Alerts: one rule at one layer, and how its state moves from step to step. Pure: no files, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

State = Literal["inactive", "pending", "firing"]
STATES: tuple[State, ...] = ("inactive", "pending", "firing")
INACTIVE, PENDING, FIRING = range(3)
"""Codes of the states: their places in `STATES`."""


@dataclass(frozen=True)
class Evidence:
    """What was measured when a rule fired, so that a person can check the verdict."""

    signal: str
    """What the condition looks at first: `act.std`, `loss`."""
    value: float | None
    """Its value now, at the first layer concerned; None where nothing was measured."""
    steps: tuple[int, ...] = ()
    """Steps of the last readings of `signal` at that layer, oldest first (at most 60)."""
    values: tuple[float, ...] = ()
    """The readings at these steps; NaN where one was not finite."""
    measures: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the condition's detectors measured: `rise`, `fall`, `peak`, `ratio`."""
    layers: tuple[str, ...] = ()
    """The layers at which the condition holds, in depth order; empty for a condition on run signals."""
    total: int = 0
    """How many layers the condition could see."""


@dataclass(frozen=True)
class Change:
    """An alert that changed its state at a step."""

    step: int
    rule: str
    layer: str | None
    """The layer of a condition per layer; None for a condition on the whole run."""
    state: State
    severity: Literal["info", "warning", "critical"]
    message: str = ""
    """The rule's message with the measured values filled in; only for a firing alert."""
    evidence: Evidence | None = None
    """Only for a firing alert."""


class AlertStates(NamedTuple):
    """The alerts of one rule: arrays of shape () for the run, or (layers,)."""

    run: NDArray[np.int64]
    """Evaluated steps in a row at which the condition held, up to the last one."""
    last: NDArray[np.int64]
    """The last step at which it held; 0 before the first."""
    code: NDArray[np.int8]
    """The state, as its place in `STATES`."""

    @classmethod
    def inactive(cls, shape: tuple[int, ...]) -> AlertStates:
        """Give the states before the first step."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int8))


def advance(  # noqa: PLR0917 - what happened, then the two settings of the rule
    states: AlertStates, step: int, holds: NDArray[np.bool_], known: NDArray[np.bool_], hold: int, keep: int
) -> AlertStates:
    """Move all alerts of a rule on by a step.

    An alert fires once the condition has held for `hold` evaluated steps in a row, and goes on firing until
    an evaluated step more than `keep` steps after the last one at which it held. A step at which the
    condition is unknown is no evaluated step: it changes nothing.
    """
    holds = holds & known
    run = np.where(holds, states.run + 1, np.where(known, 0, states.run))
    last = np.where(holds, step, states.last)
    kept = (states.code == FIRING) & (holds | (step - last <= keep))
    moved = np.where((run >= hold) | kept, FIRING, np.where(run > 0, PENDING, INACTIVE))
    return AlertStates(run, last, np.where(known, moved, states.code).astype(np.int8))
