"""From alerts and ladders to one decision a step. Pure: the same alerts give the same decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stepguard.rules.rule import Action, ActionKind, Rule

STRENGTH: tuple[ActionKind, ...] = (
    "warn",
    "notify",
    "snapshot",
    "lower_lr",
    "skip",
    "rollback",
    "restart",
    "halt",
)
"""Of several actions asked for at one step the last in this order is taken."""
TELLS_ONLY: frozenset[ActionKind] = frozenset({"warn", "notify", "snapshot"})
"""Actions that leave the training as it is: asked for when an alert fires, and not again while it goes on."""


@dataclass(frozen=True)
class Decision:
    """What the guard does at a step, and which rule asked for it."""

    step: int
    kind: ActionKind
    settings: Mapping[str, float | str]
    rule: str
    layer: str | None
    """The first layer at which the rule fired; None for a rule about the whole run."""
    rung: int
    """Place on the rule's ladder, from 0."""
    rungs: int
    use: int
    """How often this rung was taken, this time included."""
    reason: str
    also: tuple[str, ...] = ()
    """Other rules that asked for an action at the same step."""
    dry_run: bool = False
    """Decided and reported only."""


@dataclass(frozen=True)
class Standing:
    """Where a rule stands on its ladder."""

    rung: int = 0
    used: int = 0
    acted: int | None = None
    """The step of its last action in this attempt."""
    fired: int | None = None
    """The last step at which its alert was firing."""
    waiting: bool = False
    """It asked, and a stronger action of another rule was taken instead."""
    floor: tuple[int, int] = (0, 0)
    """Rung and uses that attempts before this one have spent: a cure does not give them back."""

    def next_attempt(self) -> Standing:
        """The standing that the next attempt begins with."""
        return Standing(self.rung, self.used, floor=(self.rung, self.used))


@dataclass(frozen=True)
class Alarm:
    """A rule whose alert is firing at this step."""

    rule: Rule
    fresh: bool
    """It began to fire at some layer at this step."""
    holds: bool
    """Its condition was evaluated at this step, and holds."""
    layer: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Ask:
    alarm: Alarm
    standing: Standing
    action: Action


@dataclass(frozen=True)
class Outcome:
    """The decision of a step, if any, the ladders after it, and the rules that an action has cured."""

    decision: Decision | None
    standings: Mapping[str, Standing] = field(default_factory=dict[str, Standing])
    cured: tuple[str, ...] = ()
    notified: tuple[str, ...] = ()
    """The rules whose `notify` was served, whatever else was decided."""


def decide(
    step: int,
    alarms: Sequence[Alarm],
    standings: Mapping[str, Standing],
    settle: Mapping[str, int],
    *,
    dry_run: bool = False,
) -> Outcome:
    """Take the strongest action that the firing rules ask for, and move their ladders.

    A rule asks when its alert begins to fire, and again when it still fires `settle` steps after its last
    action; `skip` is asked for at every step at which the condition holds. `settle` names the steps of every
    rule.
    """
    after, cured = _cure(step, {alarm.rule.name for alarm in alarms}, standings, settle)
    asks: list[_Ask] = []
    for alarm in alarms:
        name = alarm.rule.name
        standing = after[name] = replace(after.get(name, Standing()), fired=step)
        ask = _ask(step, alarm, standing)
        if ask is not None:
            asks.append(ask)
    if not asks:
        return Outcome(None, after, cured)
    taken = max(asks, key=lambda ask: STRENGTH.index(ask.action.kind))
    for ask in asks:
        served = ask.action.kind == taken.action.kind or ask.action.kind in TELLS_ONLY
        after[ask.alarm.rule.name] = (
            replace(ask.standing, used=ask.standing.used + 1, acted=step, waiting=False)
            if served
            else replace(after[ask.alarm.rule.name], waiting=True)
        )
    also = tuple(ask.alarm.rule.name for ask in asks if ask is not taken)
    notified = tuple(ask.alarm.rule.name for ask in asks if ask.action.kind == "notify")
    return Outcome(_decision(step, taken, also, dry_run), after, cured, notified)


def _cure(
    step: int, firing: set[str], standings: Mapping[str, Standing], settle: Mapping[str, int]
) -> tuple[dict[str, Standing], tuple[str, ...]]:
    """Send the rules back to the foot of their ladders whose alerts have stayed clear for `settle` steps."""
    after: dict[str, Standing] = {}
    cured: list[str] = []
    for name, standing in standings.items():
        after[name] = standing
        if name in firing or standing.fired is None or step - standing.fired < settle.get(name, 0):
            continue
        if standing.acted is not None:
            cured.append(name)
        after[name] = Standing(*standing.floor, floor=standing.floor)
    return after, tuple(cured)


def _ask(step: int, alarm: Alarm, standing: Standing) -> _Ask | None:
    """The action that the rule asks for at this step, and its standing moved to that action's rung."""
    ladder = alarm.rule.ladder
    while standing.rung < len(ladder) and standing.used >= _times(ladder, standing.rung):
        standing = replace(standing, rung=standing.rung + 1, used=0)
    if standing.rung == len(ladder):
        return None
    action = ladder[standing.rung]
    # A skipped step is no cure that needs time to show: what comes after it is due as soon as it is used up.
    skipped = standing.rung > 0 and standing.used == 0 and ladder[standing.rung - 1].kind == "skip"
    settled = standing.acted is None or step - standing.acted >= alarm.rule.settle
    due = settled or (skipped and (alarm.holds or standing.waiting))
    if action.kind == "skip":
        wanted = alarm.holds
    elif action.kind in TELLS_ONLY:
        wanted = alarm.fresh or (due and standing.used == 0)
    else:
        wanted = due and (alarm.fresh or alarm.holds or standing.waiting)
    return _Ask(alarm, standing, action) if wanted else None


def _times(ladder: Sequence[Action], rung: int) -> float:
    """How often a rung may be taken: what the rule says; else once, or without end on the last."""
    times = ladder[rung].times
    if times is not None:
        return times
    return math.inf if rung == len(ladder) - 1 else 1


def _decision(step: int, ask: _Ask, also: tuple[str, ...], dry_run: bool) -> Decision:
    return Decision(
        step=step,
        kind=ask.action.kind,
        settings=ask.action.settings,
        rule=ask.alarm.rule.name,
        layer=ask.alarm.layer,
        rung=ask.standing.rung,
        rungs=len(ask.alarm.rule.ladder),
        use=ask.standing.used + 1,
        reason=ask.alarm.reason,
        also=also,
        dry_run=dry_run,
    )
