"""The actions that a rule may ask for, their settings, and ladders of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from stepguard.rules.document import Entries, Items, Node, Scalar
from stepguard.rules.fields import Fields, Found, Kind, Number, Report, Word, describe
from stepguard.rules.rule import Action, ActionKind
from stepguard.rules.wording import listed, nearest, say

_TIMES = Number(1, 1_000_000, whole=True)
AUTO = "auto"
"""A restart's settings where the guard should choose them."""


def _settings(what: str, kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> Fields:
    return Fields(what, {**kinds, "times": _TIMES}, required)


ACTIONS: Mapping[str, Fields] = {
    "warn": _settings("warn", {}),
    "notify": _settings("notify", {}),
    "snapshot": _settings("snapshot", {}),
    "skip": _settings("skip", {"in_a_row": _TIMES}),
    "lower_lr": _settings("lower_lr", {"by": Number(0, 1, above=True, below=True)}, ("by",)),
    "rollback": _settings("rollback", {"lr": Number(0, 1, above=True)}),
    "restart": _settings(
        "restart",
        {
            "lr": Number(0, 10, above=True),
            "init": Word(("kaiming", "lsuv", "standardise")),
            "clip": Number(0, above=True),
            "pace": Number(0, 1, above=True, below=True),
            "seed": Number(0, 2**63 - 1, whole=True),
        },
    ),
    "halt": _settings("halt", {}),
}
"""Every action with the settings that it takes."""

MOST_RUNGS = 20


@dataclass(frozen=True)
class Ladder:
    """One action, or a list of them that are tried in turn."""

    def read(self, node: Node, name: str, report: Report) -> tuple[Action, ...] | None:
        """Read all rungs; None if one of them has a fault."""
        rungs = node.items if isinstance(node, Items) else [node]
        if not 0 < len(rungs) <= MOST_RUNGS:
            expected = f"one action, or a ladder of at most {MOST_RUNGS}"
            report.add(node.place, say(name, expected=expected, got=f"{len(rungs)}"))
            return None
        actions = [_action(rung, name, report) for rung in rungs]
        found = tuple(action for action in actions if action is not None)
        return found if len(found) == len(actions) else None


def _action(node: Node, name: str, report: Report) -> Action | None:
    if isinstance(node, Scalar):
        return _bare(node, name, report)
    if not isinstance(node, Entries) or len(node.entries) != 1:
        expected = "an action, or one action with its settings such as 'skip: {times: 3}'"
        report.add(node.place, say(name, expected=expected, got=describe(node)))
        return None
    ((kind, (key, settings)),) = node.entries.items()
    if kind not in ACTIONS:
        report.add(key.place, _unknown(kind, name))
        return None
    if kind == "restart" and isinstance(settings, Scalar) and settings.text == AUTO:
        return Action("restart")
    found = ACTIONS[kind].read(settings, kind, report)
    return _build(kind, found) if found is not None and _sound(kind, key, found, report) else None


def _bare(node: Scalar, name: str, report: Report) -> Action | None:
    kind = node.text
    if kind not in ACTIONS:
        report.add(node.place, _unknown(kind, name))
    elif ACTIONS[kind].required:
        missing = listed(ACTIONS[kind].required)
        report.add(node.place, say(f"{kind} needs {missing}", expected=f"'{kind}: {{{missing}: ...}}'"))
    else:
        return Action(cast(ActionKind, kind))
    return None


def _sound(kind: str, key: Scalar, found: Mapping[str, Found], report: Report) -> bool:
    """Whether all is there that the action needs, and nothing is said twice."""
    if found.keys() >= {"times", "in_a_row"}:
        report.add(key.place, say(kind, expected="times or in_a_row", got="both"))
        return False
    return all(required in found for required in ACTIONS[kind].required)


def _build(kind: str, found: Mapping[str, Found]) -> Action:
    settings = {key: each.value for key, each in found.items() if key != "times"}
    times = found["times"].value if "times" in found else None
    return Action(cast(ActionKind, kind), settings, times)


def _unknown(kind: str, name: str) -> str:
    return say(name, expected=listed(ACTIONS), got=f"'{kind[:40]}'", near=nearest(kind, ACTIONS))
