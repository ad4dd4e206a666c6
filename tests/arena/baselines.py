"""The same runs under what people use otherwise: simple stops, other tools' packs, stops drawn by lot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from arena.figures import Share, failing, healthy
from arena.judge import Verdict
from stepguard.rules.packs import load_rules
from stepguard.rules.rule import Ruleset

FILE = Path(__file__).parent / "baselines.yaml"
PACKS = ("sagemaker", "autotrainer")
"""They only warn, or restart late: here the first alert of a pack is its stop."""
WITHOUT = "sagemaker without loss and initialisation"
_LEFT_OUT = frozenset({"loss-not-decreasing", "poor-weight-initialization"})
"""The rules of the loss and of the initialisation."""


def rules() -> Ruleset:
    """All of them at once; what each does alone is told apart afterwards."""
    return load_rules([*PACKS, FILE])


def names() -> Mapping[str, frozenset[str]]:
    """Each baseline, and the rules it consists of."""
    simple = {rule.name: frozenset({rule.name}) for rule in load_rules(FILE).rules}
    packs = {pack: frozenset(rule.name for rule in load_rules(pack).rules) for pack in PACKS}
    return {**simple, **packs, WITHOUT: packs["sagemaker"] - _LEFT_OUT}


def stopped_by(verdict: Verdict, members: frozenset[str]) -> int | None:
    """The step at which a baseline stops a run."""
    return min((step for name, step in verdict.fired.items() if name in members), default=None)


def as_pack(verdicts: Sequence[Verdict], members: frozenset[str]) -> list[Verdict]:
    """The verdicts as if the baseline had been the pack."""
    return [replace(v, stopped=stopped_by(v, members), by=None, warnings={}) for v in verdicts]


def lots(verdicts: Sequence[Verdict]) -> tuple[Share, Share]:
    """What a stopper hits and harms on average that stops as many runs as the pack did, drawn at random."""
    share = sum(v.stopped is not None for v in verdicts) / max(1, len(verdicts))
    bad, good = sum(map(failing, verdicts)), sum(map(healthy, verdicts))
    return Share(round(share * bad), bad), Share(round(share * good), good)
