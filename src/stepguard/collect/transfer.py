"""One transfer from each device to the host, whatever there is to bring over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Finish = Callable[..., None]
"""Called with the host copies, each an NDArray[np.floating] of shape [elements]."""


class _Wanted(NamedTuple):
    tensors: Sequence[Tensor]
    finish: Finish


class Transfer:
    """Collects flat tensors, brings those of a device over together, and hands them out."""

    def __init__(self) -> None:
        self._wanted: dict[torch.device, list[_Wanted]] = {}

    def add(self, tensors: Sequence[Tensor], finish: Finish) -> None:
        """Bring these tensors of one device over, and call `finish` with their numbers; nothing for none."""
        if tensors:
            self._wanted.setdefault(tensors[0].device, []).append(_Wanted(tensors, finish))

    def run(self) -> None:
        """Bring everything over; what lies in the host's own memory is only looked at."""
        for device, wanted in self._wanted.items():
            for tensors, finish in wanted if device.type == "cpu" else _brought_over(wanted):
                finish(*map(_numbers, tensors))


def _brought_over(wanted: Sequence[_Wanted]) -> list[_Wanted]:
    """The same on the host, in one transfer; number formats that differ meet in the widest."""
    packed = torch.cat([tensor.reshape(-1) for each in wanted for tensor in each.tensors]).to("cpu")
    parts = iter(packed.split([tensor.numel() for each in wanted for tensor in each.tensors]))
    return [_Wanted([next(parts) for _ in each.tensors], each.finish) for each in wanted]


def _numbers(tensor: Tensor) -> NDArray[np.floating]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
