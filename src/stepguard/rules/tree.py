"""The typed tree of a condition; by their canonical texts, rules share what they compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stepguard.rules.functions import FUNCTIONS, Detector, OverLayers, Pick

CLOCKS = ("step", "progress")
"""Names that a condition may read beside the signals."""


class Kind(NamedTuple):
    """The type of a node."""

    truth: bool
    vector: bool

    def __str__(self) -> str:
        return f"a {'truth' if self.truth else 'number'}{' per layer' if self.vector else ''}"


@dataclass(frozen=True, eq=False)
class Node:
    """A part of a condition."""

    kind: Kind
    text: str
    """Canonical: equal texts mean equal values."""
    positive: bool
    """A number that is never below zero."""
    across: bool
    """Whether it depends on which layers a rule looks at."""
    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Constant(Node):
    """A number that is written down."""

    value: float


@dataclass(frozen=True, eq=False)
class Read(Node):
    """A signal, or a clock; its text is the name."""


@dataclass(frozen=True, eq=False)
class Operation(Node):
    """Arithmetic, a comparison, or logic: `operator` over the parts, from left to right."""

    operator: str


@dataclass(frozen=True, eq=False)
class Call(Node):
    """A function of the table over one argument."""

    function: str
    settings: Mapping[str, float]

    @property
    def argument(self) -> Node:
        """What the function looks at."""
        return self.parts[0]


def constant(value: float) -> Constant:
    """Make the node of a number."""
    return Constant(Kind(False, False), _number(value), value >= 0, False, (), value)


def read(name: str, *, vector: bool, positive: bool) -> Read:
    """Make the node of a signal or a clock."""
    return Read(Kind(False, vector), name, positive, False, ())


def operation(operator: str, parts: Sequence[Node], *, truth: bool) -> Operation:
    """Make the node of an operator; with one part it stands before it."""
    joined = f" {operator} ".join(part.text for part in parts)
    return Operation(
        Kind(truth, any(part.kind.vector for part in parts)),
        f"({joined})" if len(parts) > 1 else f"({operator} {parts[0].text})",
        _positive(operator, parts),
        any(part.across for part in parts),
        tuple(parts),
        operator,
    )


def call(name: str, argument: Node, settings: Mapping[str, float]) -> Call:
    """Make the node of a call; `settings` holds every setting of the function."""
    function = FUNCTIONS[name]
    folds = isinstance(function, OverLayers | Pick)
    return Call(
        Kind(function.gives == "truth", argument.kind.vector and not folds),
        f"{name}({', '.join([bare(argument), *(f'{k}={_number(v)}' for k, v in settings.items())])})",
        function.positive == "always" or (function.positive == "as argument" and argument.positive),
        folds or argument.across,
        (argument,),
        name,
        settings,
    )


def bare(node: Node) -> str:
    """Give the text of a node without brackets around the whole."""
    return node.text[1:-1] if isinstance(node, Operation) else node.text


def walk(node: Node) -> Iterator[Node]:
    """Go through a tree in the order in which it is written."""
    yield node
    for part in node.parts:
        yield from walk(part)


def measures(node: Node) -> tuple[str, ...]:
    """Name what the detectors of a tree measure, without repetition."""
    functions = [FUNCTIONS[part.function] for part in walk(node) if isinstance(part, Call)]
    names = [name for function in functions if isinstance(function, Detector) for name in function.measures]
    return tuple(dict.fromkeys(names))


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _positive(operator: str, parts: Sequence[Node]) -> bool:
    if operator in {"+", "*", "/"}:
        return all(part.positive for part in parts)
    return operator == "**" and parts[0].positive
