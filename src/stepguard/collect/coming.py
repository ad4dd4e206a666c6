"""A frame whose numbers are on their way from the device, while the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stepguard.signals import Frame


class Coming(NamedTuple):
    """What was begun of one step."""

    bad: Tensor
    """1.0 on the device if the loss or a gradient is not finite, else 0.0; shape ()."""
    arrive: Callable[[], Arrived]
    """Waits for the numbers; to be called once, before the next step is begun."""


class Arrived(NamedTuple):
    """The frame of a step, and whether `bad` was 1.0."""

    frame: Frame
    bad: bool


def any_bad(numbers: Sequence[Tensor]) -> Tensor:
    """1.0 if one of these numbers is not finite, else 0.0; shape (), on the device of the first."""
    if not numbers:
        return torch.zeros(())
    device = numbers[0].device
    fine = [number.isfinite().reshape(-1).to(device, non_blocking=True) for number in numbers]
    return torch.cat(fine).all().logical_not().float()
