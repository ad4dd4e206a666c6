"""What a training is made of: captured at a step boundary, checked, and put back bit for bit.

A boundary has two ends. `early` is right after a step: generators, loaders and buffers, which the next
iteration moves before the guard hears of it. `late` is right before the next step: weights, optimizer,
scheduler and scaler, which the loop may move after the step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.recover.copies import copied, not_finite, size, tensors
from stepguard.recover.generators import generators, set_generators
from stepguard.recover.protocols import Scaler, Scheduler
from stepguard.recover.snapshot import SnapshotError


class Parts:
    """Model, optimizer, scheduler and scaler, and what the user adds.

    `kept` goes back with the model; `data`, loaders, only when a run is resumed.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, scheduler: Scheduler | None, scaler: Scaler | None
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.kept: dict[str, Any] = {"scheduler": scheduler, "scaler": scaler}
        self.kept = {name: part for name, part in self.kept.items() if hasattr(part, "state_dict")}
        self.data: list[Any] = []

    def size(self) -> int:
        """Bytes of model and optimizer, which a copy will take."""
        return size([dict(self.model.state_dict()), [dict(each) for each in self.optimizer.state.values()]])

    def early(self) -> dict[str, Any]:
        """Capture what the next iteration moves first."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        data = [loader.state_dict() for loader in self.data]
        return copied({"generators": generators(), "buffers": buffers, "data": data})

    def late(self, early: Mapping[str, Any]) -> dict[str, Any]:
        """Capture the rest, and complete what `early` has captured at this boundary."""
        state = self.model.state_dict()
        weights = {name: value for name, value in state.items() if name not in early["buffers"]}
        found = {
            "model": weights,
            "versions": {name: dict(part) for name, part in getattr(state, "_metadata", {}).items()},
            "optimizer": self.optimizer.state_dict(),
            "kept": {name: part.state_dict() for name, part in self.kept.items()},
        }
        return {**{name: copied(part, name) for name, part in found.items()}, **early}

    def check(self, state: Mapping[str, Any]) -> None:
        """Hold that a state is of this training, before anything is touched. SnapshotError if it is not."""
        here = self.model.state_dict()
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        weights = {name: value for name, value in here.items() if name not in buffers}
        _same("model", dict(_shapes(weights)), dict(_shapes(state["model"])))
        _same("buffers", dict(_shapes(buffers)), dict(_shapes(state["buffers"])))
        groups = [len(group["params"]) for group in self.optimizer.param_groups]
        theirs = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
        _same("optimizer", {"parameters": groups}, {"parameters": theirs})
        _same("parts", dict.fromkeys(self.kept, "kept"), dict.fromkeys(state["kept"], "kept"))

    def restore(self, state: Mapping[str, Any], *, data: bool = False) -> None:
        """Put everything back in place, the generators last; loaders only with `data`.

        Raises:
            SnapshotError: the state is of another training; nothing was touched.
        """
        self.check(state)
        weights = OrderedDict(state["model"])
        live = dict(self.model.named_buffers(remove_duplicate=False))
        persistent = self.model.state_dict().keys()
        weights.update((name, value) for name, value in state["buffers"].items() if name in persistent)
        weights._metadata = state["versions"]  # pyright: ignore[reportAttributeAccessIssue]
        self.model.load_state_dict(weights)
        with torch.no_grad():
            for name in live.keys() - persistent:
                live[name].copy_(state["buffers"][name])
        _load_optimizer(self.optimizer, state["optimizer"])
        for name, part in self.kept.items():
            part.load_state_dict(copied(state["kept"][name]))
        for loader, saved in zip(self.data, state["data"] if data else (), strict=False):
            loader.load_state_dict(copied(saved))
        set_generators(state["generators"])


def unhealthy(state: Mapping[str, Any]) -> str | None:
    """The first tensor that is not finite. Infinity is allowed in buffers: masks are made of it."""
    strict = {name: state[name] for name in ("model", "optimizer", "kept")}
    found = next((bad for name, part in strict.items() if (bad := not_finite(part, name))), None)
    return found or not_finite(state["buffers"], "buffers", infinite=True)


def _load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a copy: torch keeps the tensors that it is given, and casts them to the parameters' format."""
    saved = copied(state)
    optimizer.load_state_dict(saved)
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, entries in saved["state"].items():
        of_parameter = optimizer.state[ordered[place]] if isinstance(place, int) else {}
        for key, value in entries.items() if of_parameter else ():
            now = of_parameter[key]
            if isinstance(value, Tensor) and now.dtype != value.dtype:
                of_parameter[key] = value.to(now.device)


def _shapes(state: Any) -> Iterator[tuple[str, str]]:
    for place, tensor in tensors(state, ""):
        yield place.removeprefix("/"), f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _same(what: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    for name in (*here, *there):
        if here.get(name) != there.get(name):
            raise SnapshotError(
                f"it is of another training: {what} {name!r}: expected {here.get(name, 'none')},"
                f" got {there.get(name, 'none')}"
            )
