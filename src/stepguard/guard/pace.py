"""The pace of an attempt: the bridge from its remedy to the `Pacer` that seeks the learning rate."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from stepguard.guard.snapshots import Snapshots
from stepguard.recover.attempt import Attempt
from stepguard.recover.pacing import Pacer
from stepguard.recover.recovery import Observation
from stepguard.recover.remedies import lr_of, share_of_lr


class Pace:
    """Keeps the pace of an attempt whose learning rate is sought, after a resume as before it."""

    def __init__(
        self, attempt: Attempt, optimizer: Optimizer, snapshots: Snapshots, total_steps: int | None
    ) -> None:
        self._attempt, self._optimizer = attempt, optimizer
        self._snapshots, self._total_steps = snapshots, total_steps
        self._pacer: Pacer | None = None

    def __call__(self, seen: Observation) -> None:
        """Correct the learning rate of the step to come."""
        if self._attempt.pace is not None:
            self._pacer = self._pacer or self._begin(self._attempt.pace)
            self._pacer(seen.frame)

    def _begin(self, aim: float) -> Pacer:
        """Make the pacer at the first step: by then it is known what is gone on with."""
        optimizer = self._optimizer
        pacer = Pacer(
            aim,
            lambda: lr_of(optimizer),
            self._snapshots.scale_lr,
            lambda: share_of_lr(optimizer),
            self._total_steps,
        )
        state = self._snapshots.resumed.get("pace")
        if state:
            pacer.load_state_dict(state)
        return pacer

    def state_dict(self) -> dict[str, Any]:
        """How far the search has come; empty where there is none."""
        return {} if self._pacer is None else self._pacer.state_dict()
