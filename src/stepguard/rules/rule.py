"""A rule as the engine uses it: parsed, checked, frozen. What the YAML says becomes this in `spec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from stepguard.errors import Place
from stepguard.rules.expression import Condition
from stepguard.signals import Layer

Severity = Literal["info", "warning", "critical"]
ActionKind = Literal["warn", "notify", "snapshot", "skip", "lower_lr", "rollback", "restart", "halt"]


@dataclass(frozen=True)
class Action:
    """One rung of a ladder."""

    kind: ActionKind
    settings: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    """What stands under the action but `times`: `in_a_row`, `by`, `lr`, `init`, `clip`, `seed`."""
    times: int | None = None
    """How often before the next rung; None: once on a rung that has a next one, else without end."""

    @property
    def limit(self) -> int | None:
        """`times`, or what stands in its place: so many in a row."""
        given = self.settings.get("in_a_row", self.times)
        return None if given is None else int(given)


@dataclass(frozen=True)
class Bound:
    """One end of `active`: a step, or a share of the run where `percent` is set (0..100)."""

    value: float
    percent: bool = False

    def step(self, total_steps: int | None) -> float | None:
        """The step that it stands for; None for a percentage of an unknown total."""
        if not self.percent or math.isinf(self.value):
            return self.value
        return None if total_steps is None else self.value / 100 * total_steps


@dataclass(frozen=True)
class Active:
    """The steps at which a rule is awake, both ends included."""

    start: Bound = Bound(0)
    end: Bound = Bound(math.inf)

    @property
    def needs_total(self) -> bool:
        """Whether it can only be told with `total_steps`."""
        return self.start.percent or self.end.percent

    def span(self, total_steps: int | None) -> tuple[float, float]:
        """The first step and the last; none at all where a percentage cannot be told."""
        start, end = self.start.step(total_steps), self.end.step(total_steps)
        return (math.inf, -math.inf) if start is None or end is None else (start, end)


@dataclass(frozen=True)
class LayerFilter:
    """Which layers a rule looks at: each list of globs is "any of", the three together "and"."""

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """The rule file's `not`: globs of names, or of types, to leave out."""

    def matches(self, layer: Layer) -> bool:
        """Whether the layer passes; an empty filter passes all."""
        return (
            (not self.types or _any(layer.type, self.types))
            and (not self.names or _any(layer.name, self.names))
            and not _any(layer.name, self.without)
            and not _any(layer.type, self.without)
        )


def _any(text: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)


@dataclass(frozen=True)
class Rule:
    """One rule of a pack, ready to be evaluated."""

    name: str
    condition: Condition
    place: Place
    """Where the rule stands; `place.file` as the user named it, or the pack's file name."""
    layers: LayerFilter = LayerFilter()
    hold: int = 1
    """The rule file's `for`: evaluated steps in a row the condition must hold before the alert fires."""
    keep: int = 0
    """Steps that the alert stays firing after the condition stopped holding."""
    active: Active = Active()
    severity: Severity = "warning"
    ladder: tuple[Action, ...] = (Action("warn"),)
    settle: int = 20
    """Steps that the condition must stay clear before an action counts as a cure."""
    message: str = ""
    advice: tuple[str, ...] = ()
    source: str = ""
    """Where the rule comes from: a paper, a lecture, a tool."""


@dataclass(frozen=True)
class Ruleset:
    """All rules that watch a run, in order, after `extends`, `disable` and overrides."""

    rules: tuple[Rule, ...]
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    """The text of every file that was read, by name, so that a run file can keep them."""

    def __iter__(self):
        return iter(self.rules)

    @property
    def signals(self) -> frozenset[str]:
        """Every signal that a rule reads."""
        return frozenset[str]().union(*(rule.condition.signals for rule in self.rules))
