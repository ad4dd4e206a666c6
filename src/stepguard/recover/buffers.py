"""What forward passes move of a model besides its weights: running statistics, above all those of batch norm.

Flow: after a step in come the buffers that have moved; out they go again where a later step is skipped, since
the batch that spoiled the step has spoiled them as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

LARGEST = 1 << 16
"""Elements of the largest buffer that is kept. Statistics of units are smaller; masks and tables stay."""


@dataclass
class _Kept:
    """One buffer: the module's dictionary that it lives in, and its copy."""

    owner: dict[str, Tensor | None]
    """A module may put another tensor there, or None."""
    name: str
    restless: bool
    """A normalisation's: its kernels write without counting a version, at nearly every step."""
    copy: Tensor
    before: Tensor
    """The copy before the last one."""
    source: Tensor
    """The tensor that was copied last, and its version then."""
    version: int


class Buffers:
    """The small buffers of one model, as they were when `keep` was called last.

    Only those take time that were written to since then: of a model without batch norm none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.late = False
        """Steps are judged when the next forward pass has been made: `put_back` goes one `keep` further."""
        self._kept: list[_Kept] | None = None
        """Found at the first call, after the first forward pass: lazy modules have theirs by then."""

    def keep(self) -> None:
        """Copy what has moved since the last time."""
        if self._kept is None:
            self._kept = [_first_copy(*place) for place in _places(self._model)]
            return
        if self.late and self._kept:
            _copy([kept.before for kept in self._kept], [kept.copy for kept in self._kept])
        lives, copies = self._moved()
        if lives:
            _copy(copies, lives)

    def renew(self) -> None:
        """Copy all of them, and forget what they were before."""
        self._kept = None
        self.keep()

    def put_back(self) -> None:
        """Make every buffer that has moved what it was; before the first `keep` nothing is known."""
        if self.late and self._kept:
            _copy([kept.copy for kept in self._kept], [kept.before for kept in self._kept])
            for kept in self._kept:
                kept.version = -1  # whatever was copied last is not what the copy holds now
        lives, copies = self._moved()
        if lives:
            _copy(lives, copies)
            self._moved()  # copying has counted versions

    def _moved(self) -> tuple[list[Tensor], list[Tensor]]:
        """The buffers that were written to or replaced since the last time, and their copies."""
        lives: list[Tensor] = []
        copies: list[Tensor] = []
        for kept in self._kept or ():
            live = kept.owner.get(kept.name)
            if live is None or live.shape != kept.copy.shape:
                continue
            if live is kept.source and not kept.restless and live._version == kept.version:
                continue
            lives.append(live)
            copies.append(kept.copy)
            kept.source, kept.version = live, live._version
        return lives, copies


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(into, values)  # pyright: ignore


def _places(model: nn.Module) -> Sequence[tuple[nn.Module, str]]:
    return [
        (module, name)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.numel() <= LARGEST and not buffer.is_inference()
    ]


def _first_copy(module: nn.Module, name: str) -> _Kept:
    live = getattr(module, name)
    restless = isinstance(module, _NormBase)
    owner = module._buffers  # pyright: ignore[reportPrivateUsage]
    copy = live.detach().clone()
    return _Kept(owner, name, restless, copy, copy.clone(), live, live._version)
