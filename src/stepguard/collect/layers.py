"""Which modules are watched, and what is known of each by its class."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from stepguard.collect.activations import is_activation
from stepguard.errors import StepguardError
from stepguard.signals import Layer

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,  # pyright: ignore[reportPrivateUsage]
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
    nn.GroupNorm,
)


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
    globs = as_globs(choice)
    chosen = [item for item in everything if matches(item.layer, globs)]
    if not chosen:
        raise StepguardError(_nothing_matches(globs, everything))
    return chosen


def as_globs(choice: str | Sequence[str]) -> list[str]:
    """One glob or several, as a list."""
    return [choice] if isinstance(choice, str) else list(choice)


def matches(layer: Layer, globs: Sequence[str]) -> bool:
    """Whether the layer's name or class fits one of the globs."""
    return any(fnmatchcase(layer.name, glob) or fnmatchcase(layer.type, glob) for glob in globs)


def _nothing_matches(globs: Sequence[str], everything: Sequence[Watched]) -> str:
    names = sorted({word for item in everything for word in item.layer})
    near = [word for glob in globs for word in difflib.get_close_matches(glob, names, n=3)]
    hint = f"; near misses: {', '.join(near)}" if near else f"; layers there are: {', '.join(names[:12])}"
    return f"layers={list(globs)!r} matches no layer of the model{hint}"
