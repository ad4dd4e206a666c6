"""A set of rules as one rule file: what a recorded run keeps, so that a replay has exactly its rules.

Flow: a Ruleset in, after `extends`, `disable` and overrides; out the text of a file that needs no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from stepguard.rules.rule import Action, Active, Bound, LayerFilter, Rule, Ruleset


def dump_rules(rules: Ruleset) -> str:
    """Write the rules as YAML; `read_text_rules` gives the same rules back, but for their places."""
    document = {"version": 1, "rules": [_rule(rule) for rule in rules.rules]}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100_000)


def _rule(rule: Rule) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": rule.name, "when": rule.condition.text}
    defaults = {field: getattr(Rule, field) for field in ("hold", "keep", "active", "settle", "message")}
    for name, field, value in (
        ("layers", "layers", _layers(rule.layers)),
        ("for", "hold", rule.hold),
        ("keep", "keep", rule.keep),
        ("active", "active", _active(rule.active)),
        ("settle", "settle", rule.settle),
        ("message", "message", rule.message),
        ("advice", "advice", list(rule.advice)),
        ("source", "source", rule.source),
    ):
        if value and getattr(rule, field) != defaults.get(field):
            fields[name] = value
    return {**fields, "severity": rule.severity, "action": [_action(action) for action in rule.ladder]}


def _layers(layers: LayerFilter) -> dict[str, list[str]]:
    lists = {"type": layers.types, "name": layers.names, "not": layers.without}
    return {name: list(globs) for name, globs in lists.items() if globs}


def _active(active: Active) -> str:
    return f"{_bound(active.start)}..{_bound(active.end)}"


def _bound(bound: Bound) -> str:
    if math.isinf(bound.value):
        return ""
    return f"{bound.value!r}%" if bound.percent else f"{bound.value:.0f}"


def _action(action: Action) -> str | dict[str, Mapping[str, Any]]:
    settings = {**action.settings} | ({} if action.times is None else {"times": action.times})
    return {action.kind: settings} if settings else action.kind
