"""Rules with other numbers: what `stepguard replay --grid` varies, and by which names.

A number of a rule goes by what it belongs to:

    share, act.dead         the threshold that `share(...)` or the signal is compared with
    threshold               the same, where a rule compares with one number only
    rise, n, by, of         a setting of a function; `spike.n` where several functions have it
    for, keep               the field of the rule

Names that several numbers of a rule have are followed by `.1`, `.2`, in the order of the text.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from stepguard.errors import StepguardError
from stepguard.rules.expression import ExpressionError, compile_condition
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.rule import Rule, Ruleset
from stepguard.rules.syntax import parse
from stepguard.rules.wording import listed, nearest, quote, say

MOST_VARIANTS = 100
"""Combinations of values in one grid."""

_FIELDS: Mapping[str, Callable[[Rule, int], Rule]] = {
    "for": lambda rule, value: replace(rule, hold=value),
    "keep": lambda rule, value: replace(rule, keep=value),
}
_LEAST = {"for": 1, "keep": 0}


class Knob(NamedTuple):
    """A number of a condition, written down or left at its default."""

    names: tuple[str, ...]
    """What it goes by, the most exact name first."""
    start: int
    end: int
    """Where it stands in the text; a default stands nowhere, and would be written at `start`."""
    before: str
    """What comes before it where it is a default: `, rise=`."""


class Axis(NamedTuple):
    """One `--grid`: a number of a rule, and the values that it takes."""

    rule: str
    setting: str
    values: tuple[str, ...]
    """As they were written."""


class Variant(NamedTuple):
    """Rules with one combination of values."""

    label: str
    """`share=0.5 rise=3`: what is varied, with its value here."""
    rules: Ruleset
    """The varied rules alone."""


def knobs(condition: str) -> tuple[Knob, ...]:
    """List the numbers of a condition in the order of its text, which must be a condition.

    >>> [knob.names[0] for knob in knobs("share(crash(act.std, 4)) >= 0.5")]
    ['crash.rise', 'crash.fall', 'crash.within', 'crash.young', 'share']
    """
    parsed = parse(condition)
    found = sorted(_of(parsed.body, parsed.shift), key=lambda knob: knob.start)
    counts = Counter(knob.names[0] for knob in found)
    seen: Counter[str] = Counter()
    numbered: list[Knob] = []
    for knob in found:
        exact = knob.names[0]
        seen[exact] += 1
        extra = (f"{exact}.{seen[exact]}",) if counts[exact] > 1 else ()
        numbered.append(knob._replace(names=(*extra, *knob.names)))
    return tuple(numbered)


def _of(root: ast.expr, shift: int) -> Iterator[Knob]:
    for node in ast.walk(root):
        if isinstance(node, ast.Call):
            yield from _of_call(node, shift)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for place, side in enumerate(sides):
                others = [*sides[max(place - 1, 0) : place], *sides[place + 1 : place + 2]]
                names = [name for name in map(_name, others) if name]
                if _is_number(side):
                    yield Knob((*names[:1], "threshold"), *_span(side, shift), "")


def _of_call(node: ast.Call, shift: int) -> Iterator[Knob]:
    function = FUNCTIONS[_dotted(node.func)]
    given = dict(zip((each.name for each in function.settings), node.args[1:], strict=False))
    given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    for setting in function.settings:
        names = (f"{function.name}.{setting.name}", setting.name)
        if setting.name in given:
            yield Knob(names, *_span(given[setting.name], shift), "")
        else:
            end = shift + (node.end_col_offset or 0) - 1
            yield Knob(names, end, end, f", {setting.name}=")


def _span(node: ast.expr, shift: int) -> tuple[int, int]:
    return shift + node.col_offset, shift + (node.end_col_offset or 0)


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant)


def _name(node: ast.expr) -> str:
    """What a threshold goes by: the function or the signal compared with it; empty for arithmetic."""
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    return _dotted(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    assert isinstance(node, ast.Name)
    return node.id


def read_axis(text: str, rules: Ruleset) -> Axis:
    """Read `RULE.SETTING=V1,V2`; StepguardError with near misses.

    The rule is the longest name that fits, since names of rules may hold dots.
    """
    address, equals, listing = text.partition("=")
    values = tuple(value.strip() for value in listing.split(","))
    if not equals or not all(values):
        raise StepguardError(say("--grid", expected="RULE.SETTING=V1,V2", got=quote(text)))
    names = [rule.name for rule in rules if address.startswith(f"{rule.name}.")]
    if not names:
        near = nearest(address.partition(".")[0], (rule.name for rule in rules))
        what = say("--grid: an unknown rule", expected="RULE.SETTING=V1,V2", got=quote(address), near=near)
        raise StepguardError(what)
    name = max(names, key=len)
    axis = Axis(name, address[len(name) + 1 :], tuple(dict.fromkeys(values)))
    rule = next(rule for rule in rules if rule.name == name)
    for value in axis.values:
        _change(_Edited(rule, rule.condition.text), axis.setting, value)
    return axis


def variants(rules: Ruleset, axes: Sequence[Axis]) -> list[Variant]:
    """Give every combination of the values; StepguardError if there are too many."""
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_VARIANTS:
        raise StepguardError(
            say("--grid", expected=f"at most {MOST_VARIANTS} combinations", got=f"{count:,}")
        )
    addresses = [(axis.rule, axis.setting) for axis in axes]
    if len(set(addresses)) < len(addresses):
        raise StepguardError("--grid: a setting is given twice")
    return [_variant(rules, axes, values) for values in product(*(axis.values for axis in axes))]


class _Edited(NamedTuple):
    """A rule that is being varied, and the text of its condition to be."""

    rule: Rule
    text: str


def _variant(rules: Ruleset, axes: Sequence[Axis], values: Sequence[str]) -> Variant:
    varied = {axis.rule for axis in axes}
    edited = {rule.name: _Edited(rule, rule.condition.text) for rule in rules if rule.name in varied}
    label: list[str] = []
    for axis, value in zip(axes, values, strict=True):
        edited[axis.rule] = _change(edited[axis.rule], axis.setting, value)
        label.append(f"{f'{axis.rule}.' if len(varied) > 1 else ''}{axis.setting}={value}")
    shown = " ".join(label)
    return Variant(shown, Ruleset(tuple(_compiled(each, shown) for each in edited.values())))


def _compiled(edited: _Edited, label: str) -> Rule:
    """The rule with its new condition. All changes come first: one may be allowed only with another."""
    try:
        return replace(edited.rule, condition=compile_condition(edited.text))
    except ExpressionError as error:
        raise StepguardError(f"--grid {edited.rule.name}, {label}: {error.faults[0].what}") from None


def _change(edited: _Edited, setting: str, value: str) -> _Edited:
    """Put another number in; StepguardError if there is no such number, or the value is none."""
    rule, text = edited
    at = f"--grid {rule.name}.{setting}={value}"
    if setting in _FIELDS:
        if not value.isdecimal() or int(value) < _LEAST[setting]:
            expected = f"a whole number of {_LEAST[setting]} or more"
            raise StepguardError(say(at, expected=expected, got=quote(value)))
        return _Edited(_FIELDS[setting](rule, int(value)), text)
    knob = _knob(text, setting, at)
    if not _reads_as_number(value):
        raise StepguardError(say(at, expected="a number", got=quote(value)))
    return _Edited(rule, f"{text[: knob.start]}{knob.before}{value}{text[knob.end :]}")


def _knob(text: str, setting: str, at: str) -> Knob:
    found = knobs(text)
    named = [knob for knob in found if setting == knob.names[0]]
    named = named or [knob for knob in found if setting in knob.names]
    if len(named) == 1:
        return named[0]
    exact = [*(knob.names[0] for knob in (named or found)), *([] if named else _FIELDS)]
    what = f"{at}: several numbers go by '{setting}'" if named else f"{at}: nothing to vary"
    near = None if named else nearest(setting, [name for knob in found for name in knob.names] + [*_FIELDS])
    raise StepguardError(say(what, expected=listed(exact), near=near))


def _reads_as_number(value: str) -> bool:
    try:
        return _is_number(parse(value).body)
    except ExpressionError:
        return False
