"""What a rule file says: its fields, read and checked one by one, before anything is merged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from stepguard.errors import Place
from stepguard.rules.actions import Ladder
from stepguard.rules.document import Document, Entries, Items, Node, Scalar
from stepguard.rules.expression import Condition, ExpressionError, compile_condition
from stepguard.rules.fields import Fields, Found, ListOf, Number, Report, Text, Word, describe
from stepguard.rules.rule import Active, Bound, LayerFilter
from stepguard.rules.wording import say

VERSION = "1"
MOST_RULES = 1_000
_LONGEST = 10**12


@dataclass(frozen=True)
class When:
    """A condition."""

    def read(self, node: Node, name: str, report: Report) -> Condition | None:
        """Compile it; its faults point into the text as it stands in the file."""
        if not isinstance(node, Scalar):
            report.add(node.place, say(name, expected="a condition", got=describe(node)))
            return None
        try:
            return compile_condition(node.text)
        except ExpressionError as error:
            hint = ": the comma ended the condition, put it in quotes" if node.cut else ""
            for fault in error.faults:
                report.add(node.at(fault.offset), fault.what + hint)
            return None


_BOUND = r"(\d+(?:\.\d+)?)(\s*%)?"
RANGE = rf"\s*(?:{_BOUND})?\s*\.\.\s*(?:{_BOUND})?\s*"
"""A range of steps, as a regular expression; it also matches one without ends, which is no range."""


@dataclass(frozen=True)
class Steps:
    """A range of steps, FROM..TO, each end a step, a percentage of the run, or nothing."""

    expected: str = "FROM..TO in steps or %, such as ..30% or 100..2000"

    def read(self, node: Node, name: str, report: Report) -> Active | None:
        """Read the range; both ends are included."""
        text = node.text if isinstance(node, Scalar) else ""
        match = re.fullmatch(RANGE, text, re.ASCII)
        if match is None or text.strip() == "..":
            report.add(node.place, say(name, expected=self.expected, got=describe(node)))
            return None
        start = _bound(match[1], match[2], 0)
        end = _bound(match[3], match[4], math.inf)
        wrong = _wrong_ends(start, end)
        if wrong:
            report.add(node.place, say(name, expected=wrong, got=describe(node)))
            return None
        return Active(start, end)


def _bound(number: str | None, percent: str | None, default: float) -> Bound:
    return Bound(default) if number is None else Bound(float(number), bool(percent))


def _wrong_ends(start: Bound, end: Bound) -> str:
    """Say what was expected of a pair of ends; empty if they are right."""
    for bound in (start, end):
        if bound.percent and bound.value > 100:
            return "at most 100%"
        if not bound.percent and bound.value != math.inf and bound.value != int(bound.value):
            return "whole steps"
    comparable = start.percent == end.percent
    return "the first end before the second" if comparable and start.value > end.value else ""


LAYERS = Fields("layers", dict.fromkeys(("type", "name", "not"), ListOf(Text("a glob"))))
"""The fields of a filter of layers."""


@dataclass(frozen=True)
class Layers:
    """Which layers a rule looks at."""

    def read(self, node: Node, name: str, report: Report) -> LayerFilter | None:
        """Read the filter."""
        found = LAYERS.read(node, name, report)
        if found is None:
            return None
        types, names, without = (found[key].value if key in found else () for key in LAYERS.kinds)
        return LayerFilter(types, names, without)


RULE = Fields(
    "a rule",
    {
        "name": Text("letters, digits and '-', '_', '.', at most 80", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"),
        "when": When(),
        "layers": Layers(),
        "for": Number(1, _LONGEST, whole=True),
        "keep": Number(0, _LONGEST, whole=True),
        "active": Steps(),
        "severity": Word(("info", "warning", "critical")),
        "action": Ladder(),
        "settle": Number(1, _LONGEST, whole=True),
        "message": Text(),
        "advice": ListOf(Text()),
        "source": Text(),
    },
    required=("name",),
)
"""The fields of a rule. Beside its name, a rule of an extending file sets only what it changes."""


@dataclass(frozen=True)
class RuleSpec:
    """One rule as a file has it."""

    name: str
    place: Place
    fields: dict[str, Found]
    """The fields that the file sets; a field with a fault is not among them."""
    given: frozenset[str]
    """The fields that the file names, with or without a fault."""


@dataclass(frozen=True)
class Rules:
    """The rules of a file."""

    def read(self, node: Node, name: str, report: Report) -> list[RuleSpec] | None:
        """Read all of them; a rule without a name of its own is a fault."""
        if not isinstance(node, Items):
            report.add(node.place, say(name, expected="a list of rules", got=describe(node)))
            return None
        if len(node.items) > MOST_RULES:
            report.add(node.place, say(name, expected=f"at most {MOST_RULES:,}", got=f"{len(node.items):,}"))
            return None
        specs: dict[str, RuleSpec] = {}
        for item in node.items:
            spec = _rule(item, report)
            if spec and spec.name in specs:
                report.rule = spec.name
                report.add(spec.place, f"a second rule of this name (first at {specs[spec.name].place})")
                report.rule = None
            elif spec:
                specs[spec.name] = spec
        return list(specs.values())


def _rule(node: Node, report: Report) -> RuleSpec | None:
    given = getattr(node, "entries", {})
    named = given["name"][1] if "name" in given else None
    report.rule = named.text[:80] if isinstance(named, Scalar) else None
    fields = RULE.read(node, "a rule", report)
    report.rule = None
    if fields is None or "name" not in fields:
        return None
    return RuleSpec(fields["name"].value, node.place, fields, frozenset(given))


FILE = Fields(
    "a rule file",
    {
        "version": Word((VERSION,)),
        "description": Text(longest=10_000),
        "extends": ListOf(Text("a pack or a file")),
        "disable": ListOf(Text("the name of a rule")),
        "rules": Rules(),
    },
    required=("version",),
)
"""The fields of a rule file."""


@dataclass(frozen=True)
class FileSpec:
    """One rule file."""

    file: str
    description: str
    extends: tuple[tuple[str, Place], ...]
    disable: tuple[tuple[str, Place], ...]
    rules: tuple[RuleSpec, ...]


def read_file(document: Document, file: str, report: Report) -> FileSpec:
    """Read a rule file; all its faults go into the report."""
    for problem in document.problems:
        report.add(problem.place, problem.what)
    found = FILE.read(document.root, "the file", report) or {}
    if isinstance(document.root, Entries) and not {"rules", "extends"} & set(document.root.entries):
        report.add(document.root.place, say("no rules", expected="'rules' or 'extends'"))
    return FileSpec(
        file,
        found["description"].value if "description" in found else "",
        _placed(found.get("extends")),
        _placed(found.get("disable")),
        tuple(found["rules"].value) if "rules" in found else (),
    )


def _placed(found: Found | None) -> tuple[tuple[str, Place], ...]:
    if found is None:
        return ()
    nodes = found.node.items if isinstance(found.node, Items) else [found.node]
    scalars = [node for node in nodes if isinstance(node, Scalar) and node.text in found.value]
    return tuple((scalar.text, scalar.place) for scalar in scalars)
