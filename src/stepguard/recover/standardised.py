"""Steps as if each input of a layer had mean 0 and std 1; what the model computes is left as it is.

Flow: in come the inputs of the linear layers in the first forward pass. Before a step is judged the gradients
of the layers whose inputs differ much in size become those of a layer on standardised inputs, and while it is
taken their weights do; after it both are again what they are on the inputs as they come.

    W x + b = V (x - m) / s + c    with    V = W s,    c = b + W m,    dL/dV = (dL/dW - dL/db m) / s

Which way is steepest depends on the units: of two inputs the one that is a thousand times as large learns a
million times as fast, and at no learning rate do both learn (LeCun et al. 1998, Efficient BackProp;
Desjardins et al. 2015, arXiv 1507.00210).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNEVEN = 10.0
"""How many spreads of a typical input the largest one must reach for inputs that differ much in size."""
LEAST = 0.01
"""The smallest scale, relative to the typical one: what hardly varies in one batch may do so in the next."""


@dataclass(frozen=True)
class _Layer:
    """A linear layer, with mean and scale of its inputs, of shape (inputs,): 0 and 1 where they are even."""

    module: nn.Linear
    mean: Tensor
    scale: Tensor

    @torch.no_grad()
    def measure(self, inputs: Tensor) -> bool:
        """Take mean and scale from a batch of shape (..., inputs); False if they do not differ much.

        A bias that is not trained cannot take the mean up. Scales are powers of two, so that weights which do
        not move come back bit for bit.
        """
        columns = inputs.reshape(-1, inputs.shape[-1]).to(torch.promote_types(inputs.dtype, torch.float32))
        std, mean = columns.std(0, correction=0), columns.mean(0)
        typical = std[std > 0].median() if bool((std > 0).any()) else std.new_tensor(torch.nan)
        if not bool((mean.abs() + std).max() > UNEVEN * typical):
            return False
        if self._centres:
            self.mean.copy_(mean)
        else:
            std = (std.square() + mean.square()).sqrt()
        self.scale.copy_(torch.exp2(torch.where(std > 0, std, typical).clamp(LEAST * typical).log2().round()))
        return True

    @property
    def _centres(self) -> bool:
        bias = self.module._parameters["bias"]  # pyright: ignore[reportPrivateUsage]
        return bias is not None and bias.requires_grad

    @property
    def differs(self) -> bool:
        return bool((self.scale != 1).any() or (self.mean != 0).any())

    def gradient(self, own: Tensor) -> Tensor:
        """The gradient of the weights on standardised inputs, from their own."""
        bias = self.module.bias
        shift = bias.grad[:, None] * self.mean if self._centres and bias.grad is not None else 0.0
        return (own - shift) / self.scale

    def enter(self) -> None:
        """Make the weights those on standardised inputs."""
        if self._centres:
            self.module.bias.add_(self.module.weight @ self.mean)
        self.module.weight.mul_(self.scale)

    def leave(self) -> None:
        """Make the weights those on the inputs as they are."""
        self.module.weight.div_(self.scale)
        if self._centres:
            self.module.bias.sub_(self.module.weight @ self.mean)


class Standardised:
    """The linear layers of one model that take their steps on standardised inputs; at first none."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._used: Sequence[_Layer] | None = None
        """Those whose inputs differ, found at the first step."""
        self._own: list[tuple[_Layer, Tensor]] = []
        """The weights' own gradients, from when a step is looked at to its end."""
        self._inside: list[_Layer] = []
        """The layers whose weights are on standardised inputs: all within a step, none outside."""

    def begin(self, model: nn.Module) -> None:
        """Take in the layers whose inputs may be looked at: those that are trained, and not cut in pieces."""
        self._used = None
        self._layers = {
            name: _Layer(module, torch.zeros_like(module.weight[0]), torch.ones_like(module.weight[0]))
            for name, module in model.named_modules()
            if type(module) is nn.Linear
            and type(module.weight) is nn.Parameter
            and module.weight.requires_grad
        }

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Begin with a layer that was just initialised, on its first inputs; its output after that."""
        layer = next((each for each in self._layers.values() if each.module is module), None)
        if layer is None or not args or not layer.measure(args[0]):
            return output
        layer.leave()  # it was initialised as on standardised inputs
        return F.linear(args[0], layer.module.weight, layer.module.bias)

    @property
    def idle(self) -> bool:
        """Whether no layer is among them, nor half-way through a step."""
        return not (self._layers or self._own or self._inside)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What all ranks must have alike."""
        return [part for layer in self._layers.values() for part in (layer.mean, layer.scale)]

    @torch.no_grad()
    def look(self) -> None:
        """Before a step is judged: give the weights the gradients by which it will be taken."""
        self.leave()
        if self._used is None:
            self._used = [layer for layer in self._layers.values() if layer.differs]
        for layer in self._used:
            weight = layer.module.weight
            if weight.grad is not None:
                own, weight.grad = weight.grad, layer.gradient(weight.grad)
                self._own.append((layer, own))

    @torch.no_grad()
    def enter(self) -> None:
        """The step that was looked at is about to be taken; one that was not is left as it is."""
        for layer, _ in self._own:
            layer.enter()
            self._inside.append(layer)

    @torch.no_grad()
    def leave(self) -> None:
        """The step is over: taken, left out or broken off."""
        while self._inside:
            self._inside.pop().leave()
        while self._own:
            layer, own = self._own.pop()
            layer.module.weight.grad = own

    def state_dict(self) -> dict[str, Any]:
        """Means and scales by layer."""
        return {name: (layer.mean.clone(), layer.scale.clone()) for name, layer in self._layers.items()}

    def go_on(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave of the same model."""
        self.begin(model)
        self._layers = {name: self._layers[name] for name in state}
        for name, (mean, scale) in state.items():
            self._layers[name].mean.copy_(mean)
            self._layers[name].scale.copy_(scale)
