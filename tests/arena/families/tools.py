"""Optimizers as people write them themselves, rightly and wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class HomeMade(Optimizer):
    """Goes through all parameters with gradients; `move` says how far each one goes, against its sign."""

    def __init__(self, parameters: Any, lr: float, **settings: Any) -> None:
        super().__init__(parameters, {"lr": lr} | settings)
        self.taken = 0

    def mine(self) -> Iterator[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """Each parameter that has a gradient, what is kept of it, its group."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                yield parameter, self.state[parameter], group

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.taken += 1
        for parameter, kept, group in self.mine():
            parameter.sub_(self.move(parameter, kept, group), alpha=group["lr"])

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def mean(self, kept: dict[str, Any], name: str, value: Tensor, beta: float) -> Tensor:
        """A running mean, corrected for its start at zero."""
        average = kept.setdefault(name, torch.zeros_like(value)).lerp_(value, 1 - beta)
        return average / (1 - beta**self.taken)


class Lamb(HomeMade):
    """Adam's way, as long as the layer is large (You et al. 2020)."""

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        grad = parameter.grad
        assert grad is not None
        way = self.mean(kept, "way", grad, 0.9) / (self.mean(kept, "square", grad**2, 0.99).sqrt() + 1e-6)
        size, length = parameter.norm().clamp(min=1e-2), way.norm() + 1e-9
        return way * size / length


class Langevin(HomeMade):
    """Descent with as much noise as a heat asks for (Welling and Teh 2011)."""

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad + torch.randn_like(parameter) * (2 * group["heat"] / group["lr"]) ** 0.5


class NoFloor(HomeMade):
    """Adam without the small number below: where a gradient is always zero, it divides zero by zero."""

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        grad = parameter.grad
        assert grad is not None
        return self.mean(kept, "way", grad, 0.9) / self.mean(kept, "square", grad**2, 0.999).sqrt()


class Forgetless(HomeMade):
    """Momentum in which the factor before the old sum was forgotten."""

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        assert parameter.grad is not None
        return kept.setdefault("sum", torch.zeros_like(parameter)).add_(parameter.grad)


class Shampoo(HomeMade):
    """Rows and columns are each made equally steep (Gupta et al. 2018); roots anew each tenth step."""

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        grad = parameter.grad
        assert grad is not None
        if grad.dim() < 2:
            return self.mean(kept, "way", grad, 0.9)
        left, right = (self.root(kept, side, g) for side, g in (("left", grad), ("right", grad.T)))
        way = left @ self.mean(kept, "way", grad, 0.9) @ right
        return way * grad.norm() / (way.norm() + 1e-9)

    def root(self, kept: dict[str, Any], side: str, grad: Tensor) -> Tensor:
        """The inverse fourth root of what was summed of one side."""
        total = kept.setdefault(side, 1e-4 * torch.eye(len(grad))).add_(grad @ grad.T)
        if self.taken % 10 == 1:
            values, vectors = torch.linalg.eigh(total)
            kept["root " + side] = vectors * values.clamp(min=1e-6) ** -0.25 @ vectors.T
        return kept["root " + side]


class Curvature(HomeMade):
    """The mean gradient divided by the diagonal of the Hessian, at most `clip` (Liu et al. 2023)."""

    def feel(self, loss: Tensor) -> None:
        """Look how curved the loss is along a vector by lot."""
        parts = list(p for group in self.param_groups for p in group["params"])
        grads = torch.autograd.grad(loss, parts, create_graph=True)
        lots = [torch.randint_like(p, 2) * 2 - 1 for p in parts]
        along = torch.autograd.grad(sum((g * v).sum() for g, v in zip(grads, lots, strict=True)), parts)
        for p, lot, bend in zip(parts, lots, along, strict=True):
            curved = self.state[p].setdefault("curved", torch.zeros_like(p))
            curved.lerp_(lot * bend, 0.1)

    def move(self, parameter: Tensor, kept: dict[str, Any], group: dict[str, Any]) -> Tensor:
        assert parameter.grad is not None
        way = self.mean(kept, "way", parameter.grad, 0.9)
        return (way / kept["curved"].clamp(min=group["floor"])).clamp(-group["clip"], group["clip"])
