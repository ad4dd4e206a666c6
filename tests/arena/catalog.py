"""All scenarios, and the split of their families into those for tuning and those held out."""

from __future__ import annotations

from arena.families import (
    attention,
    classic,
    diffusion,
    distances,
    last,
    late,
    pictures,
    special,
    strings,
    structured,
)
from arena.training import Scenario

MODULES = (classic, attention, special, pictures, strings, structured, late, last, distances, diffusion)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for module in (
        classic,
        attention,
        special,
        pictures,
        strings,
        structured,
        late,
        last,
        distances,
        diffusion,
    )
    for scenario in module.SCENARIOS
}

TUNING = frozenset(
    {
        "cnn", "mlp", "deep-mlp", "residual", "pre-norm", "lstm", "autoencoder", "embeddings", "gan",
        "reinforcement", "fine-tuning",
    }
)  # fmt: skip
"""Thresholds may look at these families. All others were only ever reported."""

FRESH = frozenset(
    {
        "mixer", "denoiser", "vae", "maxout", "dilated", "tagger", "reverse", "graph", "flow", "cross",
    }
)  # fmt: skip
"""Families written after the rules were last tuned, by someone who had not seen them; reported apart."""

LATEST = frozenset({"sets", "gauss"})
"""Two families more, written after rules that had seen the fresh ones; what they missed was seen later."""

LAST = frozenset({"photo", "scan"})
"""Two families more, written before the rules were tuned once more and judged once; then seen, too."""

BLIND = frozenset({"places", "diffusion"})
"""Two families more, written by someone who had not seen the rules as they then were, and judged once."""

KINDS = ("tuning", "held out", "fresh", "latest", "last", "blind")
"""What became of a family: tuned on, kept from that, or written later and met once the rules were there."""


def kind(scenario: Scenario) -> str:
    """Which of `KINDS` its family is."""
    seen = {"tuning": TUNING, "fresh": FRESH, "latest": LATEST, "last": LAST, "blind": BLIND}
    return next((kind for kind, families in seen.items() if scenario.family in families), "held out")


def held_out(scenario: Scenario) -> bool:
    """Whether its family was kept from tuning."""
    return scenario.family not in TUNING
