"""What is needed of other people's objects that a training is made of."""

from __future__ import annotations

from typing import Any, Protocol

from torch.optim import Optimizer


class Scheduler(Protocol):
    """A learning-rate scheduler, as torch's are."""

    optimizer: Optimizer


class Scaler(Protocol):
    """A GradScaler, as torch's is."""

    def step(self, optimizer: Optimizer) -> Any:
        """Take the optimizer's step, unless a gradient overflowed."""

    def update(self) -> None:
        """Adapt the scale."""

    def get_scale(self) -> float:
        """The scale now."""
        ...
