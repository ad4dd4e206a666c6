"""JSON Schema of rule files for editors, made of the very tables that the loader reads files by.

What a schema cannot see: names that do not exist (packs, files, rules to disable), names that are given
twice, rules without `when` that no other file has, types, arity and settings inside a condition, placeholders
of messages, ends of `active` in the wrong order, and how a scalar is written (`on`, `010`, `1.0` for 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stepguard.rules.actions import ACTIONS, AUTO, MOST_RUNGS, Ladder
from stepguard.rules.checker import LITERALS
from stepguard.rules.fields import Fields, Kind, ListOf, Number, Text, Word
from stepguard.rules.functions import FUNCTIONS, Function
from stepguard.rules.packs import pack_names
from stepguard.rules.rule import Rule
from stepguard.rules.spec import FILE, LAYERS, MOST_RULES, RANGE, RULE, Layers, Rules, Steps, When
from stepguard.rules.syntax import LONGEST_TEXT
from stepguard.rules.tree import CLOCKS
from stepguard.signals import METRIC, SIGNALS, Signal

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

DESCRIPTIONS: Mapping[str, Mapping[str, str]] = {
    FILE.what: {
        "version": "The version of the format.",
        "description": "What these rules are for.",
        "extends": "Packs or files whose rules are taken over first; later ones win.",
        "disable": "Rules of the extended files to leave out.",
        "rules": "The rules. One with the name of an extended rule replaces the fields that it sets.",
    },
    RULE.what: {
        "name": "Unique within the file.",
        "when": "The condition. `stepguard explain NAME` tells what a function or a signal means.",
        "layers": "Which layers the rule looks at; all where it is left out.",
        "for": "Evaluated steps in a row at which the condition must hold.",
        "keep": "Steps for which the alert stays firing after the condition stopped holding.",
        "active": "FROM..TO, the steps at which the rule is awake, each end in steps or in % of total_steps.",
        "severity": "How bad it is.",
        "action": "What is done: one action, or a ladder of actions that are tried in turn.",
        "settle": "Steps that the condition must stay clear before an action counts as a cure.",
        "message": "What is said; {value}, {layer}, {layers}, {total}, {share}, {step} and what detectors"
        " measure are filled in.",
        "advice": "What a person can do about it.",
        "source": "Where the rule comes from: a paper, a lecture, a tool.",
    },
    LAYERS.what: {
        "type": "Globs of class names; any of them will do.",
        "name": "Globs of dotted names; any of them will do.",
        "not": "Globs of names or types to leave out.",
    },
}
"""What editors say of each field."""

SETTINGS: Mapping[str, str] = {
    "times": "How often before the next rung.",
    "in_a_row": "The same in a row, in place of times: a step that is taken begins the count anew.",
    "by": "Factor of the learning rate.",
    "lr": "Factor of the learning rate.",
    "init": "How the model is initialised; standardise: LSUV, and steps as on standardised inputs.",
    "clip": "Largest norm of the gradients.",
    "pace": "Update of each layer, relative to its weights, at which it is held.",
    "seed": "What is added to the seed.",
}
"""What editors say of the settings of actions."""

_EXAMPLES: Mapping[tuple[str, str], list[str]] = {
    (FILE.what, "extends"): list(pack_names()),
    (LAYERS.what, "type"): ["Conv2d", "Linear", "*ReLU*"],
    (LAYERS.what, "name"): ["features.*"],
    (LAYERS.what, "not"): ["*.head"],
    (RULE.what, "active"): ["..500", "..30%", "100.."],
}
_DEFAULTS: Mapping[str, Any] = {
    "for": Rule.hold,
    "keep": Rule.keep,
    "severity": Rule.severity,
    "settle": Rule.settle,
    "action": Rule.ladder[0].kind,
}


def rule_file_schema() -> Schema:
    """Build the schema of a rule file (draft 2020-12)."""
    return {
        "$schema": DIALECT,
        "title": "stepguard rules",
        "description": "Rules that watch a training: https://pypi.org/project/stepguard",
        **_fields(FILE),
        "anyOf": [{"required": ["rules"]}, {"required": ["extends"]}],
    }


def _kind(kind: Kind) -> Schema:  # noqa: PLR0911 - one line for each kind
    match kind:
        case Text():
            return _text(kind)
        case Word():
            return {"enum": [value for word in kind.choices for value in _values(word)]}
        case Number():
            return _number(kind)
        case ListOf():
            one = _kind(kind.kind)
            return {"anyOf": [one, {"type": "array", "items": one}]}
        case Fields():
            return _fields(kind)
        case When():
            return _condition()
        case Layers():
            return _fields(LAYERS)
        case Steps():
            return {"type": "string", "pattern": f"^{RANGE}$", "not": {"pattern": r"^\s*\.\.\s*$"}}
        case Ladder():
            ladder = {"type": "array", "items": _action(), "minItems": 1, "maxItems": MOST_RUNGS}
            return {"anyOf": [*_action()["anyOf"], ladder]}
        case Rules():
            return {"type": "array", "items": _fields(RULE), "maxItems": MOST_RULES}
        case _:
            raise TypeError(f"no schema for {type(kind).__name__}")


def _values(word: str) -> list[str | int]:
    """A word as YAML reads it: one of digits is a number as well."""
    return [int(word), word] if word.isdecimal() else [word]


def _text(kind: Text) -> Schema:
    # A name or a glob such as 0 is a number to YAML, and a text to the loader.
    schema: Schema = {"type": ["string", "number"], "maxLength": kind.longest}
    return schema | {"pattern": f"^{kind.pattern}$" if kind.pattern else r"\S"}


def _number(kind: Number) -> Schema:
    schema: Schema = {"type": "integer" if kind.whole else "number"}
    if not math.isinf(kind.least):
        schema["exclusiveMinimum" if kind.above else "minimum"] = kind.least
    if not math.isinf(kind.most):
        schema["exclusiveMaximum" if kind.below else "maximum"] = kind.most
    return schema


def _fields(fields: Fields) -> Schema:
    described = DESCRIPTIONS.get(fields.what, SETTINGS)
    properties = {key: _kind(kind) | {"description": described[key]} for key, kind in fields.kinds.items()}
    for key, schema in properties.items():
        if (fields.what, key) in _EXAMPLES:
            schema["examples"] = _EXAMPLES[fields.what, key]
        if fields is RULE and key in _DEFAULTS:
            schema["default"] = _DEFAULTS[key]
    return {
        "type": "object",
        "properties": properties,
        "required": list(fields.required),
        "additionalProperties": False,
    }


def _action() -> Schema:
    bare = [name for name, settings in ACTIONS.items() if not settings.required]
    given = {name: _fields(settings) for name, settings in ACTIONS.items()}
    given["restart"] = {"anyOf": [{"const": AUTO}, given["restart"]]}
    given["skip"]["not"] = {"required": ["times", "in_a_row"]}
    with_settings = {
        "type": "object",
        "properties": given,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": bare}, with_settings]}


# Conditions


def _condition() -> Schema:
    return {
        "type": "string",
        "maxLength": LONGEST_TEXT,
        "pattern": f"^{_tokens()}$",
        "patternErrorMessage": "expected a condition of signals and functions: see stepguard explain NAME",
        "examples": [*map(_example_of_signal, SIGNALS.values()), *map(example_of, FUNCTIONS.values())],
    }


def _tokens() -> str:
    """A regular expression of everything that a condition can be made of, and nothing else."""
    settings = {setting.name for function in FUNCTIONS.values() for setting in function.settings}
    words = [*SIGNALS, *CLOCKS, *FUNCTIONS, *LITERALS, *sorted(settings), "and", "or", "not"]
    names = "|".join(map(re.escape, words))
    number = r"(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    metric = rf"{re.escape(METRIC)}[A-Za-z_][A-Za-z0-9_.]*"
    return rf"(?:(?:{names}|{metric}|{number})(?![A-Za-z0-9_.])|[-+*/(),=<>!\s])+"


def _example_of_signal(signal: Signal) -> str:
    return f"{signal.name} > 1"


def example_of(function: Function) -> str:
    """A condition with the function, its settings at their defaults, or else at 20."""
    argument = "act.std" if function.takes == "number" else "act.std > 1"
    settings = [
        f"{setting.name}={20 if setting.default is None else setting.default:g}"
        for setting in function.settings
    ]
    call = f"{function.name}({', '.join([argument, *settings])})"
    if function.gives == "truth":
        return call
    return f"{call} >= 0.5" if function.name == "share" else f"{call} > 1"
