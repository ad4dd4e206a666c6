"""Numbers and short phrases, the same in diagnoses, tables and logs. All of it is plain ASCII."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stepguard.series.records import Thinned
from stepguard.signals import Layer

if TYPE_CHECKING:
    from stepguard.recover.decision import Decision

_DEEDS: Mapping[str, tuple[str, str, str]] = {
    "warn": ("says", "say", "so, and the training goes on"),
    "notify": ("calls", "call", "the subscribers that asked for alerts"),
    "snapshot": ("writes", "write", "a snapshot and the evidence"),
    "skip": ("skips", "skip", "this optimizer step: weights and optimizer state stay as they are"),
    "lower_lr": ("lowers", "lower", "the learning rate"),
    "rollback": ("goes", "go", "back to the newest healthy snapshot"),
    "restart": ("ends", "end", "this attempt; the next begins from nothing"),
    "halt": ("halts", "halt", "the training: a person should look"),
}
"""What the guard does, what it would do, and the rest of the sentence."""

_INITS: Mapping[str, str] = {
    "kaiming": "Kaiming initialisation",
    "lsuv": "LSUV initialisation",
    "standardise": "LSUV initialisation and steps on standardised inputs",
}


def number(value: float | None) -> str:
    """Three significant digits as a person writes them; `-` where nothing was measured.

    >>> [number(x) for x in (0.00312, 12.34, 1234.5, 4.2e7, float("nan"), None)]
    ['0.00312', '12.3', '1,234', '4.2e+07', 'nan', '-']
    """
    if value is None:
        return "-"
    if math.isfinite(value) and 1e3 <= abs(float(f"{value:.3g}")) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def count(n: int, noun: str) -> str:
    """A number of things: `1 layer`, `1,000 layers`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def listing(names: list[str], at_most: int) -> str:
    """Names with commas, and how many more there are: `a, b and 3 more`."""
    shown, rest = names[:at_most], len(names) - at_most
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))) if shown else ""


def layer_name(layer: Layer) -> str:
    """A layer with its type: `conv3 (Conv2d)`."""
    return f"{layer.name} ({layer.type})" if layer.type else layer.name


def where(layers: tuple[Layer, ...], total: int) -> str:
    """The first layer concerned, and how many more of how many: `conv3 (Conv2d) and 3 more of 9 layers`."""
    if not layers:
        return ""
    if len(layers) == 1:
        return layer_name(layers[0])
    return f"{layer_name(layers[0])} and {len(layers) - 1} more of {count(max(total, len(layers)), 'layer')}"


_SETTINGS = {"clip": "gradients clipped at {}", "seed": "seed +{}", "in_a_row": "up to {} in a row"}


def settings(values: Mapping[str, float | str]) -> str:
    """What an action changes, in full: `learning rate x0.5, LSUV initialisation`; empty for no settings."""
    return ", ".join(_setting(name, value) for name, value in values.items())


def _setting(name: str, value: float | str) -> str:
    text = number(value) if isinstance(value, (int, float)) else value
    match name:
        case "lr" | "by":
            return f"learning rate x{text}"
        case "init":
            return _INITS.get(text, f"{text} initialisation")
        case "pace":
            return f"each layer's updates held at {float(value):.2g} of its weights"
        case _:
            return _SETTINGS.get(name, f"{name} {{}}").format(text)


def deed(decision: Decision) -> str:
    """What the guard does now, as a sentence; in a dry run, what it would do."""
    does, would, rest = _DEEDS[decision.kind]
    verb = f"would {would}" if decision.dry_run else does
    changed = settings(decision.settings)
    return f"stepguard {verb} {rest}" + (f", with {changed}" if changed else "")


def short_deed(decision: Decision) -> str:
    """The same in a few words for a log: `restart (learning rate x0.5)`."""
    changed = settings(decision.settings)
    would = "would " if decision.dry_run else ""
    return f"{would}{decision.kind}" + (f" ({changed})" if changed else "")


def thinned_words(thinned: Thinned) -> str:
    """What the run file's limit cost a recording."""
    return (
        f"{count(thinned.frames, 'frame')} of steps {thinned.first:,} to {thinned.last:,} kept their scalars"
        " only, to hold the file's limit"
    )
