"""What the fields of a rule file may hold: one small reader for each kind, all faults into one report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from stepguard.errors import Place, Problem
from stepguard.rules.document import Entries, Items, Node, Scalar
from stepguard.rules.wording import listed, nearest, quote, say

MOST_FAULTS = 1_000
"""Faults of all files together."""

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_SHOWN = 1_000
"""Larger bounds are there against nonsense only, and are not worth a word."""
_NOT_A_WORD = {"", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n"}


class TooManyFaults(Exception):
    """The faults in the report are enough: whatever was read, it is no rule file."""


@dataclass
class Report:
    """Collects the faults of a file, under the name of the rule at hand."""

    problems: list[Problem] = field(default_factory=list[Problem])
    rule: str | None = None

    def add(self, place: Place, what: str) -> None:
        """Note a fault; TooManyFaults where it is time to give up."""
        self.problems.append(Problem(place, what, self.rule))
        if len(self.problems) >= MOST_FAULTS:
            raise TooManyFaults


class Kind(Protocol):
    """Reads one kind of field."""

    def read(self, node: Node, name: str, report: Report) -> Any:
        """Give the value of a node; None after a fault, which is in the report then."""
        ...


class Found(NamedTuple):
    """A field that a file sets: its value, and the node it was read from."""

    value: Any
    node: Node


def describe(node: Node) -> str:
    """Say what stands there."""
    if isinstance(node, Scalar):
        return quote(node.text) if node.text else "nothing"
    return "a list" if isinstance(node, Items) else "a mapping"


@dataclass(frozen=True)
class Text:
    """A text that a person reads, or a name."""

    expected: str = "a text"
    pattern: str = ""
    longest: int = 1_000

    def read(self, node: Node, name: str, report: Report) -> str | None:
        """Read a text; a plain `on`, `yes` or `null` is a trap."""
        if not isinstance(node, Scalar) or not node.text.strip():
            report.add(node.place, say(name, expected=self.expected, got=describe(node)))
        elif node.plain and node.text.lower() in _NOT_A_WORD:
            got = f"{node.text}, which YAML reads as another thing: put it in quotes"
            report.add(node.place, say(name, expected=self.expected, got=got))
        elif len(node.text) > self.longest:
            limit = f"at most {self.longest:,} characters"
            report.add(node.place, say(name, expected=limit, got=f"{len(node.text):,}"))
        elif self.pattern and not re.fullmatch(self.pattern, node.text):
            report.add(node.place, say(name, expected=self.expected, got=describe(node)))
        else:
            return node.text
        return None


@dataclass(frozen=True)
class Word:
    """One of a few words."""

    choices: tuple[str, ...]

    def read(self, node: Node, name: str, report: Report) -> str | None:
        """Read one of the words."""
        if isinstance(node, Scalar) and node.text in self.choices:
            return node.text
        near = nearest(node.text, self.choices) if isinstance(node, Scalar) else None
        report.add(node.place, say(name, expected=listed(self.choices), got=describe(node), near=near))
        return None


@dataclass(frozen=True)
class Number:
    """A number in a range, which may be open at either end."""

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    above: bool = False
    """Whether `least` itself is too small."""
    below: bool = False
    """Whether `most` itself is too large."""

    @property
    def expected(self) -> str:
        """What a person should write."""
        kind = f"a {'whole ' if self.whole else ''}number"
        low = f"above {self.least:g}" if self.above else f"of {self.least:g} or more"
        high = f" and {'below' if self.below else 'at most'} {self.most:g}"
        return f"{kind} {low}{'' if self.most > _SHOWN else high}"

    def read(self, node: Node, name: str, report: Report) -> float | int | None:
        """Read a number, `1e-8` too, which YAML takes for a text."""
        if isinstance(node, Scalar) and node.plain and not _number_trap(node.text):
            value = float(node.text)
            if self._allows(value):
                return int(value) if self.whole else value
        report.add(node.place, say(name, expected=self.expected, got=_instead_of_number(node)))
        return None

    def _allows(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and math.isfinite(value) and (not self.whole or value == int(value))


def _instead_of_number(node: Node) -> str:
    if isinstance(node, Scalar) and not node.plain and _NUMBER.fullmatch(node.text):
        return f"{quote(node.text)} in quotes"
    trap = _number_trap(node.text) if isinstance(node, Scalar) else ""
    return f"{describe(node)}{trap if trap != '-' else ''}"


def _number_trap(text: str) -> str:
    """Say why a text is no number to us; empty if it is one."""
    if re.fullmatch(r"[-+]?0\d+", text, re.ASCII):
        return ", which YAML reads as octal"
    if re.fullmatch(r"[-+]?\d+(:\d+)+(\.\d*)?", text, re.ASCII):
        return ", which YAML reads in sixtieths"
    if re.fullmatch(r"[-+]?[\d.]+ ?%", text, re.ASCII):
        return ": a share is written 0.3, not 30%"
    return "" if _NUMBER.fullmatch(text) else "-"


@dataclass(frozen=True)
class ListOf:
    """Several of a kind; a single one may stand without the brackets."""

    kind: Kind

    def read(self, node: Node, name: str, report: Report) -> tuple[Any, ...] | None:
        """Read all of them; what has a fault is left out."""
        if isinstance(node, Items):
            values = [self.kind.read(item, name, report) for item in node.items]
        else:
            values = [self.kind.read(node, name, report)]
        return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class Fields:
    """A mapping with known keys."""

    what: str
    """What it is, with its article: `a rule`."""
    kinds: Mapping[str, Kind]
    required: tuple[str, ...] = ()

    def read(self, node: Node, name: str, report: Report) -> dict[str, Found] | None:
        """Read every field that is there; unknown keys and missing ones are faults."""
        if not isinstance(node, Entries):
            report.add(node.place, say(name, expected=f"{self.what}, a mapping", got=describe(node)))
            return None
        found: dict[str, Found] = {}
        for key, (scalar, value) in node.entries.items():
            if key not in self.kinds:
                report.add(scalar.place, self._unknown(key))
            elif (read := self.kinds[key].read(value, key, report)) is not None:
                found[key] = Found(read, value)
        for key in self.required:
            if key not in node.entries:
                report.add(node.place, f"{key} is missing: {self.what} needs it")
        return found

    def _unknown(self, key: str) -> str:
        near = nearest(key, self.kinds)
        expected = "" if near else f"one of {', '.join(self.kinds)}"
        return say(f"{quote(key)} is no field of {self.what}", expected=expected, near=near)
