"""Conditions: what a rule's `when` says, parsed and checked once, when the file is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from stepguard.rules import tree
from stepguard.rules.checker import Checker
from stepguard.rules.syntax import ExpressionError, Fault, parse
from stepguard.rules.tree import CLOCKS, Node, Read

__all__ = ["Condition", "ExpressionError", "Fault", "compile_condition"]


@dataclass(frozen=True)
class Condition:
    """A checked condition; two of the same text are equal."""

    text: str
    """As it was written."""
    root: Node = field(compare=False, repr=False)
    vector: bool = field(compare=False)
    """Whether it is true or false for each layer, rather than once for the run."""
    layered: bool = field(compare=False)
    """Whether it looks at layers at all."""
    subject: str = field(compare=False)
    """The first signal named; the clock where there is no signal."""
    signals: frozenset[str] = field(compare=False)
    """Every signal named, without the clocks."""
    measures: tuple[str, ...] = field(compare=False)
    """What its detectors measure: `rise`, `ratio`."""


def compile_condition(text: str) -> Condition:
    """Parse and check a condition; ExpressionError with every fault.

    >>> condition = compile_condition("share(crash(act.std, rise=3, fall=3, within=60)) >= 0.5")
    >>> condition.vector, condition.subject, condition.measures
    (False, 'act.std', ('rise', 'fall', 'peak'))
    >>> compile_condition("los > 5")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    stepguard.rules.syntax.ExpressionError: 0: an unknown signal (... did you mean 'loss'?)
    """
    parsed = parse(text)
    checker = Checker(text, parsed.shift)
    root = checker.truth(parsed.body)
    if root is None:
        raise ExpressionError(checker.faults)
    reads = [node for node in tree.walk(root) if isinstance(node, Read)]
    if not reads:
        raise ExpressionError([Fault(parsed.shift, "always the same: it reads no signal")])
    names = [node.text for node in reads]
    signals = [name for name in names if name not in CLOCKS]
    return Condition(
        text=text,
        root=root,
        vector=root.kind.vector,
        layered=any(node.kind.vector for node in reads),
        subject=(signals or names)[0],
        signals=frozenset(signals),
        measures=tree.measures(root),
    )
