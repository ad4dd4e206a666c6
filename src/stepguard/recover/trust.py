"""Each layer's update held to a share of its weights, whatever optimizer and learning rate make of it.

Flow: before a step the weights are copied; after it each layer has gone in the optimizer's direction, so far
as it should: a trust ratio as in LARS and LAMB (You et al. 2017, arXiv 1708.03888; 2020, arXiv 1904.00962),
on the whole update as in Fromage (Bernstein et al. 2020, arXiv 2002.03432).

    w + u    becomes    w + u * share * |w| / |u|

One learning rate for all layers is too high for some while it is too low for others wherever gradients differ
more between layers than weights do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LEAST = 0.4
"""The norm of a unit's weights that those of a layer count as at least: zeros have to get away, and what is
added to activations of size 1 would hardly move by a share of its 0.02.

A little less than where any usual initialisation begins: torch's own at 0.58, LeCun's at 1, He's at 1.4.
"""
SMALL = 0.1
"""What zeros begin with, relative to the weights that they count as."""
_LEAST_LR = 0.01
"""Below this share of the largest learning rate nothing is concluded.

What a scheduler of functions multiplies may never be reached.
"""
LARGEST = ("initial_lr", "max_lr")
"""Where schedulers of torch leave in a group what its learning rate is reckoned from."""


@dataclass(frozen=True)
class _Layer:
    """What is held together: the weights, bias and the like that one module has of its own."""

    parameters: Sequence[nn.Parameter]
    group: int
    """The place of their parameter group in the optimizer."""


class TrustRatios:
    """Holds the updates of what an optimizer trains of a model. It remembers no step.

    While a step is taken there is one more copy of the weights. Numbers stay on the device.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._layers: Sequence[_Layer] | None = None
        """Found at the first step: lazy modules have their parameters by then."""
        self._before: list[list[Tensor]] = []
        """The weights of each layer as they were, within a step."""
        self._began = False
        """A step was taken: no layer is all zeros any more."""

    @torch.no_grad()
    def enter(self) -> None:
        """A step is about to be taken."""
        if self._layers is None:
            self._layers = self._find()
        self._before = [[parameter.clone() for parameter in layer.parameters] for layer in self._layers]

    @torch.no_grad()
    def leave(self, share: float) -> None:
        """The step is over: let every layer have moved by this share of its weights.

        Layers whose learning rate is less than the largest of all groups, at its largest in its schedule,
        move by so much less. Those that did not move stay, but for zeros at the first step.
        """
        before, self._before = self._before, []
        if not before:
            return
        shares = self._shares()
        for layer, old in zip(self._layers or (), before, strict=True):
            moved = [new - was for new, was in zip(layer.parameters, old, strict=True)]
            least = LEAST * sum(len(was) if was.dim() else 1 for was in old) ** 0.5
            factor = share * shares[layer.group] * _norm(old).clamp(min=least) / _norm(moved)
            factor = factor.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0)
            for parameter, was, update in zip(layer.parameters, old, moved, strict=True):
                parameter.copy_(was.addcmul_(update, factor.to(update.device)))
        if not self._began:
            self._leave_zero()

    def _leave_zero(self) -> None:
        """Draw the layers at random that are all zeros though a step was to move them: they sit on a saddle.

        So do the factors of a product that are all zero: their gradients are. Small, so that the model is
        what it was, and the same on all ranks. What was left out of the loss, or has no learning rate, stays.
        """
        self._began = True
        groups = self._optimizer.param_groups
        zeros = [
            parameter
            for layer in self._layers or ()
            if float(groups[layer.group]["lr"]) > 0.0
            and all(p.grad is not None and not bool(p.any()) for p in layer.parameters)
            for parameter in layer.parameters
        ]
        for place, parameter in enumerate(zeros):
            generator = torch.Generator(parameter.device).manual_seed(place)
            inputs = parameter[0].numel() if parameter.dim() else 1
            parameter.normal_(std=SMALL * LEAST / inputs**0.5, generator=generator)

    def drop(self) -> None:
        """Leave the step as it is."""
        self._before = []

    def _shares(self) -> Sequence[float]:
        """The learning rate of each group, relative to the largest there is."""
        groups = self._optimizer.param_groups
        largest = max(float(group.get(key, 0.0)) for group in groups for key in ("lr", *LARGEST))
        return [max(_LEAST_LR, float(group["lr"]) / largest) if largest > 0.0 else 1.0 for group in groups]

    def _find(self) -> Sequence[_Layer]:
        places = {p: i for i, group in enumerate(self._optimizer.param_groups) for p in group["params"]}
        layers: list[_Layer] = []
        # The second part is what the optimizer has of other models, and parameters outside of modules.
        for own in (*(module.parameters(recurse=False) for module in self._model.modules()), *_alone(places)):
            mine = [parameter for parameter in own if parameter.requires_grad and parameter in places]
            if mine:
                layers.append(_Layer(mine, min(places.pop(parameter) for parameter in mine)))
        return layers


def _alone(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    return [[parameter] for parameter in parameters]


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all together, in single precision at least, on the first one's device."""
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
