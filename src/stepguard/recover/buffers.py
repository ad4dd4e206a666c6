"""What forward passes move of a model besides its weights: running statistics, above all those of batch norm.

Flow: after a step in come the buffers that have moved; out they go again where a later step is skipped, since
the batch that spoiled the step has spoiled them as well. Where the device leaves steps out, it does so there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

LARGEST = 1 << 16
"""Elements of the largest buffer that is kept. Statistics of units are smaller; masks and tables stay."""


class _Room(NamedTuple):
    """Room for all buffers of one device and number format, flat."""

    kept: Tensor
    now: Tensor
    """What they hold, until it is known whether that is to be kept."""


@dataclass
class _Kept:
    """One buffer: the module's dictionary that it lives in, and its copy."""

    owner: dict[str, Tensor | None]
    """A module may put another tensor there, or None."""
    name: str
    restless: bool
    """A normalisation's: its kernels write without counting a version, at nearly every step."""
    copy: Tensor
    now: Tensor
    """Where it lies in a room's `kept`, and in its `now`."""
    source: Tensor
    """The tensor that was copied last, and its version then."""
    version: int


class Buffers:
    """The small buffers of one model, as they were when `keep` was called last.

    Only those take time that were written to since then: of a model without batch norm none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._rooms: list[_Room] = []
        self._kept: list[_Kept] | None = None
        """Found at the first call, after the first forward pass: lazy modules have theirs by then."""

    def keep(self) -> None:
        """Copy what has moved since the last time."""
        if self._kept is None:
            self._make_room()
            return
        lives, copies = self._moved()
        if lives:
            _copy(copies, lives)

    def renew(self) -> None:
        """Copy all of them, whatever was copied before."""
        self._kept = None
        self.keep()

    @torch.no_grad()
    def settle(self, bad: Tensor) -> None:
        """Put them back if `bad` is 1.0, keep them if it is 0.0; nobody waits to know which."""
        if self._kept is None:
            self._make_room()
            return
        lives, copies = self._moved()
        if not lives:
            return
        for room in self._rooms:
            room.now.copy_(room.kept)
        moved = {id(copy) for copy in copies}
        _copy([kept.now for kept in self._kept if id(kept.copy) in moved], lives)
        for room in self._rooms:
            torch.where(bad.bool(), room.kept, room.now, out=room.kept)
        _copy(lives, copies)
        self._moved()  # copying has counted versions

    def _make_room(self) -> None:
        """Copy all of them for the first time."""
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[nn.Module, str]]] = {}
        for module, name in _places(self._model):
            live = getattr(module, name)
            groups.setdefault((live.device, live.dtype), []).append((module, name))
        self._kept, self._rooms = [], []
        for places in groups.values():
            lives = [getattr(*place).detach() for place in places]
            flat = torch.cat([live.reshape(-1) for live in lives])
            room = _Room(flat, flat.clone())
            self._rooms.append(room)
            sizes = [live.numel() for live in lives]
            for place, live, *parts in zip(places, lives, *(x.split(sizes) for x in room), strict=True):
                self._kept.append(_first_copy(*place, *(part.view(live.shape) for part in parts)))

    def put_back(self) -> None:
        """Make every buffer that has moved what it was; before the first `keep` nothing is known."""
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


def _first_copy(module: nn.Module, name: str, copy: Tensor, now: Tensor) -> _Kept:
    live = getattr(module, name)
    restless = isinstance(module, _NormBase)
    owner = module._buffers  # pyright: ignore[reportPrivateUsage]
    return _Kept(owner, name, restless, copy, now, live, live._version)
