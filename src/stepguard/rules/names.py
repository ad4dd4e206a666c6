"""Names in a condition: read from Python's syntax tree, and what to say of those that nobody knows."""

from __future__ import annotations

import ast

from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.tree import CLOCKS
from stepguard.rules.wording import nearest, quote, say
from stepguard.signals import SIGNALS, signal


def dotted(node: ast.expr) -> str | None:
    """Read `act.std` as one name; None where a dot stands behind anything but a name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def unknown_name(name: str) -> str:
    """Say that nothing that can be read is called so."""
    if name in FUNCTIONS:
        return say(f"{name} is a function", expected=FUNCTIONS[name].signature, got=quote(name))
    near = nearest(name, [*SIGNALS, *CLOCKS, *FUNCTIONS])
    return say("an unknown signal", expected="a signal", got=quote(name), near=near)


def unknown_function(name: str | None) -> str:
    """Say that no function is called so; None is no name at all."""
    if name and signal(name):
        return say(
            f"{quote(name)} is a signal and cannot be called", expected="a function before the bracket"
        )
    got = quote(name) if name else "something else"
    return say("an unknown function", expected="a function", got=got, near=nearest(name or "", FUNCTIONS))
