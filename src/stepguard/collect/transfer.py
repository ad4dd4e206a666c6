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
    """Collects flat tensors, brings those of a device over together, and hands them out.

    `run` waits for them. `start` does not: what it gives does, once the host has better things behind it.
    """

    def __init__(self) -> None:
        self._wanted: dict[torch.device, list[_Wanted]] = {}

    def add(self, tensors: Sequence[Tensor], finish: Finish) -> None:
        """Bring these tensors of one device over, and call `finish` with their numbers; nothing for none."""
        if tensors:
            self._wanted.setdefault(tensors[0].device, []).append(_Wanted(tensors, finish))

    def run(self) -> None:
        """Bring everything over; what lies in the host's own memory is only looked at."""
        for device, wanted in self._wanted.items():
            _hand_out(wanted if device.type == "cpu" else _unpacked(wanted, _packed(wanted).to("cpu")))

    def start(self) -> Finish:
        """Copy everything as it is now; what is given waits until that has arrived, and hands it out."""
        coming = [(wanted, *_sent(_packed(wanted))) for wanted in self._wanted.values()]

        def finish() -> None:
            for wanted, packed, arrive in coming:
                arrive()
                _hand_out(_unpacked(wanted, packed))

        return finish


def _packed(wanted: Sequence[_Wanted]) -> Tensor:
    """All in one, on their own device; number formats that differ meet in the widest."""
    return torch.cat([tensor.reshape(-1) for each in wanted for tensor in each.tensors])


def _sent(packed: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """The copy on the host, in memory that a device writes to by itself, and what waits until it has."""
    copy = packed.to("cpu", non_blocking=True)
    if packed.device.type != "cuda":
        return copy, lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(packed.device))
    return copy, event.synchronize


def _unpacked(wanted: Sequence[_Wanted], packed: Tensor) -> list[_Wanted]:
    parts = iter(packed.split([tensor.numel() for each in wanted for tensor in each.tensors]))
    return [_Wanted([next(parts) for _ in each.tensors], each.finish) for each in wanted]


def _hand_out(wanted: Sequence[_Wanted]) -> None:
    for tensors, finish in wanted:
        finish(*map(_numbers, tensors))


def _numbers(tensor: Tensor) -> NDArray[np.floating]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
