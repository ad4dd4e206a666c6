"""When a snapshot counts as healthy: after how many quiet steps, and which rules have a say. Pure."""

from __future__ import annotations

from stepguard.collect.cadence import LATER
from stepguard.recover.decision import TELLS_ONLY
from stepguard.rules.functions import FUNCTIONS, Detector, OverSteps
from stepguard.rules.rule import Rule, Ruleset
from stepguard.rules.tree import Call, Node

LEAST, MOST = 50, 2000
"""Bounds of the quiet time: faults have time to show, and a long window does not put it off for ever."""

BRIEF = 20
"""The least quiet time of a short run: within so many steps the rules fire that look at no window."""


def acts(rule: Rule) -> bool:
    """Whether the rule does more than tell. One that only tells may fire for ever and spoil no snapshot."""
    return any(action.kind not in TELLS_ONLY for action in rule.ladder)


def can_roll_back(rules: Ruleset) -> bool:
    """Whether a ladder has a rollback."""
    return any(action.kind == "rollback" for rule in rules.rules for action in rule.ladder)


def quiet_time(rules: Ruleset, every: int, total_steps: int | None = None) -> int:
    """Steps without an alert that certify a snapshot: longer than any rule that acts takes to find a fault.

    That is the windows that its condition looks at, one inside the other, and the steps for which it must
    hold; at most `LATER` steps pass before a measurement, or `every` between two where that is fixed.

    Of a run whose length is known it is a tenth at most: a short run would be over before its first snapshot
    is certified. A fault of which the longest windows tell too late costs a rollback that is no cure.
    """
    times = (
        _reach(rule.condition.root) + LATER + (rule.hold - 1) * every for rule in rules.rules if acts(rule)
    )
    quiet = min(MOST, max((LEAST, *times)))
    return quiet if total_steps is None else min(quiet, max(BRIEF, total_steps // 10))


def _reach(node: Node) -> int:
    within = max((_reach(part) for part in node.parts), default=0)
    function = FUNCTIONS[node.function] if isinstance(node, Call) else None
    own = function.reach(node.settings) if isinstance(function, Detector | OverSteps) else 0  # pyright: ignore[reportAttributeAccessIssue]
    return own + within
