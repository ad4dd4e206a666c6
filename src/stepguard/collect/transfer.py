"""One transfer from each device to the host, whatever there is to bring over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Finish = Callable[[NDArray[np.floating]], None]


class Transfer:
    """Collects small flat tensors, brings those of a device over together, and hands them out."""

    def __init__(self) -> None:
        self._parts: dict[torch.device, list[tuple[Tensor, Finish]]] = {}

    def add(self, tensor: Tensor | None, finish: Finish) -> None:
        """Bring this flat tensor over, and call `finish` with its numbers; nothing for None."""
        if tensor is not None:
            self._parts.setdefault(tensor.device, []).append((tensor, finish))

    def run(self) -> None:
        """Bring everything over. Number formats that differ meet in the widest."""
        for parts in self._parts.values():
            packed = torch.cat([tensor for tensor, _ in parts])
            host = packed.to("cpu", packed.dtype if packed.dtype == torch.float64 else torch.float32).numpy()
            ends = np.cumsum([tensor.numel() for tensor, _ in parts])[:-1]
            for numbers, (_, finish) in zip(np.split(host, ends), parts, strict=True):
                finish(numbers)
