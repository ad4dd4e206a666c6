"""The numbers of a step that no layer has: pace, learning rate, and what the training logs."""

from __future__ import annotations

import time

from torch.optim import Optimizer

from stepguard.recover.protocols import Scaler
from stepguard.recover.trust import LARGEST
from stepguard.signals import METRIC


class Scalars:
    """Gives them once a step."""

    def __init__(self, optimizer: Optimizer, scaler: Scaler | None) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._last_time: float | None = None
        self.metrics: dict[str, float] = {}
        """What was logged for the step to come."""

    def log(self, name: str, value: float) -> None:
        """Take one number in, as `metric.NAME`; TypeError or ValueError for what is none."""
        self.metrics[METRIC + name] = float(value)

    def __call__(self) -> dict[str, float]:
        """Those of the step at hand."""
        scalars, self.metrics = self.metrics, {}
        now = time.perf_counter()
        if self._last_time is not None:
            scalars["step_time"] = now - self._last_time
        self._last_time = now
        group = self._optimizer.param_groups[0]
        scalars["lr"] = float(group["lr"])
        largest = max(float(group.get(key, 0.0)) for key in LARGEST)
        if largest > 0.0:
            scalars["lr_share"] = scalars["lr"] / largest
        if self._scaler is not None:
            scalars["loss_scale"] = float(self._scaler.get_scale())
        return scalars
