"""All scenarios, and the split of their families into those for tuning and those held out."""

from __future__ import annotations

from arena.families import (
    adapted,
    attention,
    blanks,
    blind,
    cars,
    choices,
    classic,
    dials,
    diffusion,
    distances,
    houses,
    last,
    late,
    lessons,
    measures,
    pictures,
    recipes,
    scenes,
    special,
    strings,
    strips,
    structured,
    workshop,
    writing,
)
from arena.training import Scenario

MODULES = (
    *(classic, attention, special, pictures, strings, structured, late, last, distances, diffusion),
    *(blind, recipes, scenes, adapted, dials, houses, choices, blanks, strips),
    *(workshop, lessons, writing, measures, cars),
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for module in MODULES for scenario in module.SCENARIOS
}

TUNING = frozenset(
    {
        "cnn", "mlp", "deep-mlp", "residual", "pre-norm", "lstm", "autoencoder", "embeddings", "gan",
        "reinforcement", "fine-tuning",
    }
)  # fmt: skip
"""Thresholds may look at these families. All others were only ever reported."""

LATER = {
    "fresh": frozenset(
        {"mixer", "denoiser", "vae", "maxout", "dilated", "tagger", "reverse", "graph", "flow", "cross"}
    ),
    "latest": frozenset({"sets", "gauss"}),
    "last": frozenset({"photo", "scan"}),
    "fifth": frozenset({"places", "diffusion"}),
    "sixth": frozenset({"towers", "order", "recipe"}),
    "seventh": frozenset({"scenes", "adapted", "dials", "houses"}),
    "eighth": frozenset({"choices", "blanks", "strips"}),
    "ninth": frozenset({"workshop", "lessons", "writing", "measures", "cars"}),
}
"""Families written later, one lot after the other, by someone who had not seen the rules as they then were.

Each lot was judged once before the next rules looked at it, and that figure noted."""

KINDS = ("tuning", "held out", *LATER)
"""What became of a family: tuned on, kept from that, or written later and met once the rules were there."""


def kind(scenario: Scenario) -> str:
    """Which of `KINDS` its family is."""
    seen = {"tuning": TUNING, **LATER}
    return next((kind for kind, families in seen.items() if scenario.family in families), "held out")


def held_out(scenario: Scenario) -> bool:
    """Whether its family was kept from tuning."""
    return scenario.family not in TUNING
