"""What is allowed in a rule file and yet surely not meant: rules that never fire, or repeat another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from stepguard.errors import Problem
from stepguard.rules import tree
from stepguard.rules.document import Items
from stepguard.rules.functions import FUNCTIONS, Detector, OverSteps
from stepguard.rules.lifetimes import MIRRORED, last_step
from stepguard.rules.packs import Loaded
from stepguard.rules.rule import Rule
from stepguard.rules.tree import Call, Constant, Node, Operation
from stepguard.rules.wording import plural, quote

_SHARES = {"act.near_zero", "act.tiny", "act.dead", "act.dormant", "act.saturated", "grad.zero", "progress"}
"""Signals that cannot be above 1."""
_SAME_RANGE = {"prev", "mean", "median", "min", "max", "ewma", "worst", "first", "last"}
"""Functions whose result lies where their argument lies."""
_YOUNG = {"crash"}
"""Functions that need no full window."""
_ENDLESS = 10**15
"""Steps of a run whose length sets no bound."""
_SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True)
class Lint:
    """Something that is surely not meant, or worth a note."""

    problem: Problem
    level: Literal["warning", "note"]


def lint(loaded: Loaded) -> list[Lint]:
    """Look for what is allowed and yet surely not meant, in the order of the rules."""
    rules = loaded.ruleset.rules
    found = [each for rule in rules for each in _of_rule(rule, loaded)]
    pairs = ((second, _of_pair(first, second)) for first, second in combinations(rules, 2))
    found += [_warning(rule, "when", what, loaded) for rule, what in pairs if what]
    sleeping = [rule for rule in rules if rule.active.needs_total]
    if sleeping:
        more = f"; so do {len(sleeping) - 1} more" if len(sleeping) > 1 else ""
        what = f"counts in percent and sleeps without total_steps{more}"
        place = loaded.fields[sleeping[0].name]["active"].node.place
        found.append(Lint(Problem(place, what, sleeping[0].name), "note"))
    return found


def _warning(rule: Rule, field: str, what: str, loaded: Loaded) -> Lint:
    found = loaded.fields[rule.name].get(field)
    return Lint(Problem(found.node.place if found else rule.place, what, rule.name), "warning")


def _of_rule(rule: Rule, loaded: Loaded) -> Iterator[Lint]:
    for what in (*_comparisons(rule.condition.root), *_contradictions(rule.condition.root)):
        yield _warning(rule, "when", what, loaded)
    needed = _steps_needed(rule.condition.root) + rule.hold - 1
    end = rule.active.end
    if not end.percent and needed > end.value + 1:
        what = f"can never fire: it needs {plural(int(needed), 'step')} and sleeps after step {end.value:g}"
        yield _warning(rule, "active" if rule.hold == 1 else "for", what, loaded)
    last = last_step(rule.condition.root, _ENDLESS)
    if needed > last + 1:
        what = f"can never fire: it needs {plural(int(needed), 'step')} and holds up to step {last:g} only"
        yield _warning(rule, "when", what, loaded)
    if "layers" in loaded.fields[rule.name] and not rule.condition.layered:
        yield _warning(rule, "layers", "the filter does nothing: the condition looks at no layers", loaded)
    kinds = [action.kind for action in rule.ladder]
    if "halt" in kinds[:-1]:
        rung = kinds.index("halt") + 1
        node = loaded.fields[rule.name]["action"].node
        assert isinstance(node, Items)
        what = f"{kinds[rung]} is never reached: halt stands before it"
        yield Lint(Problem(node.items[rung].place, what, rule.name), "warning")


# Comparisons that are always the same


class _Range(NamedTuple):
    low: float
    high: float


def _range(node: Node) -> _Range:
    """Bound a number, as far as its parts tell."""
    if isinstance(node, Constant):
        return _Range(node.value, node.value)
    if node.text in _SHARES or (isinstance(node, Call) and node.function == "share"):
        return _Range(0, 1)
    if isinstance(node, Call) and node.function in _SAME_RANGE:
        return _range(node.argument)
    return _Range(0 if node.positive else -math.inf, math.inf)


def _comparisons(root: Node) -> Iterator[str]:
    for node in tree.walk(root):
        if isinstance(node, Operation) and node.operator in {"<", "<=", ">", ">=", "==", "!="}:
            yield from _comparison(node)


def _comparison(node: Operation) -> Iterator[str]:
    shown = quote(tree.bare(node), 80)
    left, right = (_range(part) for part in node.parts)
    if any(math.isnan(bound.low) for bound in (left, right)):
        yield f"{shown} is never true: nothing compares with nan; write nonfinite(x)"
    elif not isinstance(node.parts[0], Constant) or not isinstance(node.parts[1], Constant):
        verdict = _verdict(node.operator, left, right)
        if verdict is not None:
            yield f"{shown} is {'always' if verdict else 'never'} true{_where(node)}"


def _verdict(operator: str, left: _Range, right: _Range) -> bool | None:
    """Tell a comparison from the ranges alone; None where it depends."""
    match operator:
        case "<" | "<=":
            left, right = right, left
        case ">" | ">=":
            pass
        case _:
            apart = left.low > right.high or right.low > left.high
            return (operator == "!=") if apart else None
    strict = operator in {"<", ">"}
    if left.high < right.low or (strict and left.high == right.low):
        return False
    return True if left.low > right.high or (not strict and left.low == right.high) else None


def _where(node: Operation) -> str:
    shown: list[str] = []
    for part in node.parts:
        bounds = _range(part)
        if not isinstance(part, Constant) and not math.isinf(bounds.low):
            high = "" if math.isinf(bounds.high) else f" to {bounds.high:g}"
            shown.append(f"{part.text} lies from {bounds.low:g}{high or ' up'}")
    return f": {', '.join(shown)}" if shown else ""


def _contradictions(root: Node) -> Iterator[str]:
    """Thresholds that no number can pass together: `loss > 5 and loss < 3`."""
    for node in tree.walk(root):
        if isinstance(node, Operation) and node.operator == "and":
            bounds = [bound for bound in map(_bound, node.parts) if bound is not None]
            for (name, sign, one), (other, mirrored, two) in combinations(bounds, 2):
                low, high = (one, two) if sign[0] == ">" else (two, one)
                apart = low > high or (low == high and not (sign[1:] and mirrored[1:]))
                if name == other and sign[0] != mirrored[0] and apart:
                    yield f"{quote(tree.bare(node), 80)} is never true: {name} cannot be both"


def _bound(node: Node) -> tuple[str, str, float] | None:
    """Of a threshold: what is compared, how, and with which number."""
    match node:
        case Operation(operator=sign, parts=(left, Constant() as right)) if sign in MIRRORED:
            return left.text, sign, right.value
        case Operation(operator=sign, parts=(Constant() as left, right)) if sign in MIRRORED:
            return right.text, MIRRORED[sign], left.value
        case _:
            return None


# Windows


def _steps_needed(node: Node) -> int:
    """Count the steps from the first on before the condition can be known."""
    parts = [_steps_needed(part) for part in node.parts]
    if isinstance(node, Operation) and node.operator == "or":
        return min(parts)
    inside = max(parts, default=1)
    function = FUNCTIONS[node.function] if isinstance(node, Call) else None
    if not isinstance(node, Call) or not isinstance(function, OverSteps | Detector):
        return inside
    return inside if node.function in _YOUNG else inside + _window(node) - 1


def _window(node: Call) -> int:
    if node.function == "held":
        return int(node.settings["n"])
    before_now = node.function in {"prev", "delta", "growth", "zscore", "spike"}
    return int(node.settings["n"]) + (1 if before_now else 0)


# Pairs of rules


def _of_pair(first: Rule, second: Rule) -> str:
    """Say what is wrong with two rules together; empty if nothing is."""
    if (first.layers, first.active) != (second.layers, second.active):
        return ""
    if first.condition.root.text == second.condition.root.text and first.hold == second.hold:
        return f"says what rule '{first.name}' says"
    for strict, loose in ((first, second), (second, first)):
        if _implies(strict.condition.root, loose.condition.root) and _no_stronger(strict, loose):
            return f"whenever '{strict.name}' fires, '{loose.name}' fires and does the same"
    return ""


def _no_stronger(strict: Rule, loose: Rule) -> bool:
    severe = _SEVERITIES.index(strict.severity) <= _SEVERITIES.index(loose.severity)
    return severe and strict.ladder == loose.ladder and strict.hold >= loose.hold


def _implies(strict: Node, loose: Node) -> bool:
    """Tell whether one threshold on the same quantity lies behind the other."""
    if not isinstance(strict, Operation) or not isinstance(loose, Operation):
        return False
    if strict.operator != loose.operator or strict.parts[0].text != loose.parts[0].text:
        return False
    near, far = loose.parts[-1], strict.parts[-1]
    if not isinstance(near, Constant) or not isinstance(far, Constant):
        return False
    higher = strict.operator in {">", ">="} and far.value > near.value
    return higher or (strict.operator in {"<", "<="} and far.value < near.value)
