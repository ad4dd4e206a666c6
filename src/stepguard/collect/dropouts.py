"""How much of its numbers a model drops: read from its dropout modules, without a look at any tensor."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]


class Dropouts:
    """The dropout modules of a model; what plain functions drop is not seen."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[Any] = [module for module in model.modules() if isinstance(module, _DropoutNd)]

    def scalars(self) -> dict[str, float]:
        """`dropout`, the largest share that any of them drops now; nothing where none is in training."""
        shares = [float(module.p) for module in self._modules if module.training]
        return {"dropout": max(shares)} if shares else {}
