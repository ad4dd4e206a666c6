"""All scenarios, and the split of their families into those for tuning and those held out."""

from __future__ import annotations

from arena.families import attention, classic, special
from arena.training import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for module in (classic, attention, special) for scenario in module.SCENARIOS
}

TUNING = frozenset(
    {
        "cnn", "mlp", "deep-mlp", "residual", "pre-norm", "lstm", "autoencoder", "embeddings", "gan",
        "reinforcement", "fine-tuning",
    }
)  # fmt: skip
"""Thresholds may look at these families. All others were only ever reported."""


def held_out(scenario: Scenario) -> bool:
    """Whether its family was kept from tuning."""
    return scenario.family not in TUNING
