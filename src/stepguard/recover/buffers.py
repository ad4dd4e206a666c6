"""What forward passes move of a model besides its weights: running statistics, above all those of batch norm.

Flow: after a step in come the buffers that have moved; out they go again where a later step is skipped, since
the batch that spoiled the step has spoiled them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

LARGEST = 1 << 16
"""Elements of the largest buffer that is kept. Statistics of units are smaller; masks and tables stay."""


@dataclass
class _Kept:
    """One buffer: where it lives, and its copy."""

    module: nn.Module
    name: str
    copy: Tensor
    source: Tensor
    """The tensor that was copied last, and its version then."""
    version: int

    @property
    def live(self) -> Any:
        """The buffer as it is; a module may have put another tensor there, or None."""
        return getattr(self.module, self.name)

    @property
    def moved(self) -> bool:
        """Whether it was written to, or replaced by one of its shape, since it was copied."""
        live = self.live
        if not isinstance(live, Tensor) or live.shape != self.copy.shape:
            return False
        if isinstance(self.module, _NormBase):  # its kernels write without counting a version
            return True
        return live is not self.source or live._version != self.version

    def same(self) -> None:
        """Live buffer and copy are the same now."""
        self.source = self.live
        self.version = self.source._version


class Buffers:
    """The small buffers of one model, as they were when `keep` was called last.

    Only those take time that were written to since then: of a model without batch norm none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[_Kept] | None = None
        """Found at the first call, after the first forward pass: lazy modules have theirs by then."""

    def keep(self) -> None:
        """Copy what has moved since the last time."""
        if self._kept is None:
            self._kept = [_first_copy(*place) for place in _places(self._model)]
            return
        self._equal(lambda kept: (kept.copy, kept.live))

    def put_back(self) -> None:
        """Make every buffer that has moved what it was; before the first `keep` nothing is known."""
        self._equal(lambda kept: (kept.live, kept.copy))

    def _equal(self, pair: Callable[[_Kept], tuple[Tensor, Tensor]]) -> None:
        """Write the second tensor of each pair into the first, of those that have moved."""
        moved = [kept for kept in self._kept or () if kept.moved]
        if moved:
            into, values = map(list, zip(*map(pair, moved), strict=True))
            with torch.no_grad():
                torch._foreach_copy_(into, values)  # pyright: ignore
        for kept in moved:
            kept.same()


def _places(model: nn.Module) -> Sequence[tuple[nn.Module, str]]:
    return [
        (module, name)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.numel() <= LARGEST and not buffer.is_inference()
    ]


def _first_copy(module: nn.Module, name: str) -> _Kept:
    live = getattr(module, name)
    return _Kept(module, name, live.detach().clone(), live, live._version)
