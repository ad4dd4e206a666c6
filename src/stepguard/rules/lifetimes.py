"""Until when a condition may hold, as far as the clocks in it tell: `step < 100`, `progress <= 0.7`."""

from __future__ import annotations

from math import inf

from stepguard.rules.tree import CLOCKS, Constant, Node, Operation, Read

MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""Comparisons, and what they become with their sides exchanged."""


def last_step(node: Node, total_steps: int | None) -> float:
    """The last step at which a truth may hold, or one a little later; inf where nothing ends it.

    Without `total_steps` progress is not known, and no comparison with it holds at any step: -inf.
    """
    match node:
        case Operation(operator="and"):
            return min(last_step(part, total_steps) for part in node.parts)
        case Operation(operator="or"):
            return max(last_step(part, total_steps) for part in node.parts)
        case Operation(operator=name, parts=(Read() as clock, Constant() as bound)) if name in MIRRORED:
            return _last(clock.text, name, bound.value, total_steps)
        case Operation(operator=name, parts=(Constant() as bound, Read() as clock)) if name in MIRRORED:
            return _last(clock.text, MIRRORED[name], bound.value, total_steps)
        case _:
            return inf


def _last(clock: str, comparison: str, bound: float, total_steps: int | None) -> float:
    if clock not in CLOCKS:
        return inf
    if clock == "progress" and total_steps is None:
        return -inf
    if comparison in {">", ">="}:
        return inf
    return bound if clock == "step" else bound * (total_steps or 0) + 1  # rounding
