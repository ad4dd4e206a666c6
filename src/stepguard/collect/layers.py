"""Which modules are watched, and what is known of each by its class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from stepguard.errors import StepguardError
from stepguard.signals import Layer

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,  # pyright: ignore[reportPrivateUsage]
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
    nn.GroupNorm,
)
_ACTIVATION_NAME = re.compile(r"relu|elu|silu|swish|mish|tanh|sigmoid|softplus|activation", re.IGNORECASE)

BOUNDS: dict[str, tuple[float, float]] = {
    "Tanh": (-0.995, 0.995),
    "Sigmoid": (0.0025, 0.9975),
    "Softsign": (-0.9, 0.9),
    "Hardtanh": (-1.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "ReLU6": (-float("inf"), 6.0),
}
"""Outputs at or beyond which a bounded activation is flat: its slope is at most 1 % of its steepest.

The zero side of ReLU6 is left out: a unit that rests at zero is `act.dead`, not saturated."""


@dataclass(frozen=True, eq=False)
class Watched:
    """A module that the guard watches."""

    layer: Layer
    module: nn.Module
    parameters: tuple[nn.Parameter, ...]
    """Its own, without its children's."""

    @property
    def channels_first(self) -> bool:
        """Whether its units lie on dimension 1 (convolutions, batch norm) and not on the last."""
        return isinstance(self.module, _CHANNELS_FIRST)

    @property
    def activation(self) -> bool:
        """Whether its units lie where those of the layer before lie."""
        return not self.parameters


def watched_modules(model: nn.Module, choice: str | Sequence[str] | None = None) -> list[Watched]:
    """List the modules with parameters of their own and the activation modules, in order of registration.

    `choice` narrows them by globs over names and class names. A choice that matches nothing is a
    StepguardError which lists near misses.
    """
    everything = [
        Watched(Layer(name or type(module).__name__, type(module).__name__), module, own)
        for name, module in model.named_modules()
        if (own := tuple(module.parameters(recurse=False))) or is_activation(module)
    ]
    if choice is None:
        return everything
    globs = [choice] if isinstance(choice, str) else list(choice)
    chosen = [item for item in everything if _matches(item.layer, globs)]
    if not chosen:
        raise StepguardError(_nothing_matches(globs, everything))
    return chosen


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an activation: one of torch's, or a leaf of one's own that is named like one."""
    if next(module.children(), None) is not None:
        return False
    of_torch = any(base.__module__ == "torch.nn.modules.activation" for base in type(module).__mro__)
    return of_torch or bool(_ACTIVATION_NAME.search(type(module).__name__))


def _matches(layer: Layer, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(layer.name, glob) or fnmatchcase(layer.type, glob) for glob in globs)


def _nothing_matches(globs: Sequence[str], everything: Sequence[Watched]) -> str:
    names = sorted({word for item in everything for word in item.layer})
    near = [word for glob in globs for word in difflib.get_close_matches(glob, names, n=3)]
    hint = f"; near misses: {', '.join(near)}" if near else f"; layers there are: {', '.join(names[:12])}"
    return f"layers={list(globs)!r} matches no layer of the model{hint}"
