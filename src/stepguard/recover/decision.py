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

IN_A_ROW = "in_a_row"
"""The setting of a rung whose uses count from the last step that was taken."""
WEARS_OUT: frozenset[ActionKind] = frozenset({"lower_lr", "rollback"})
CURES = 5
"""How often in an attempt the whole budget of a rung of these kinds may be spent, however often it cured."""


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
    """How often this rung was taken, this time included; 0 for a batch that is left out after a rollback."""
    reason: str
    also: tuple[str, ...] = ()
    """Other rules that asked for an action at the same step."""
    dry_run: bool = False
    """Decided and reported only."""
    to: int | None = None
    """The step whose snapshot a rollback goes back to."""


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
    spent: tuple[int, ...] = ()
    """How often each rung was taken in this attempt, cures or not; missing ones never."""
    restarts: tuple[int, ...] = ()
    """How often each rung has restarted the training, in all attempts: nothing gives one back."""
    halted: bool = False
    """It has halted the attempt, which goes on in a dry run or a replay only: nothing cures that."""

    def next_attempt(self) -> Standing:
        """The standing that the next attempt begins with: at the foot, with all but the restarts as before.

        What was left out, lowered or gone back to in one attempt has done nothing to the next.
        """
        return Standing(restarts=self.restarts)

    def uses(self, action: Action) -> int:
        """How often the rung on which it stands, which takes this action, was taken."""
        return _at(self.restarts, self.rung) if action.kind == "restart" else self.used


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
    meanwhile: bool = False
    """A batch is left out while a rollback has its time to show: the ladder stays as it is."""


@dataclass(frozen=True)
class Outcome:
    """The decision of a step, if any, the ladders after it, and the rules that an action has cured."""

    decision: Decision | None
    standings: Mapping[str, Standing] = field(default_factory=dict[str, Standing])
    cured: tuple[str, ...] = ()
    notified: tuple[str, ...] = ()
    """The rules whose `notify` was served, whatever else was decided."""
    failed: tuple[str, ...] = ()
    """The rules whose last action was no cure: the alert still fires, and the next is taken."""
    lacking: tuple[str, ...] = ()
    """The rules that would have rolled back, had there been a certified snapshot."""


def decide(
    step: int,
    alarms: Sequence[Alarm],
    standings: Mapping[str, Standing],
    settle: Mapping[str, int],
    *,
    back: int | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Take the strongest action that the firing rules ask for, and move their ladders.

    A rule asks when its alert begins to fire, and again when it still fires `settle` steps after its last
    action; `skip` is asked for at every step at which the condition holds. `settle` names the steps of every
    rule, `back` the step that a rollback would go back to; without one its rung is passed by.
    """
    after, cured = _cure(step, {alarm.rule.name for alarm in alarms}, standings, settle)
    asks: list[_Ask] = []
    for alarm in alarms:
        name = alarm.rule.name
        standing = after[name] = replace(after.get(name, Standing()), fired=step)
        ask = _ask(step, alarm, standing, back)
        if ask is not None:
            asks.append(ask)
    lacking = tuple(alarm.rule.name for alarm in alarms if back is None and _wants_back(alarm, after))
    if not asks:
        return Outcome(None, after, cured, lacking=lacking)
    taken = max(asks, key=lambda ask: STRENGTH.index(ask.action.kind))
    for ask in (ask for ask in asks if not ask.meanwhile):
        served = ask.action.kind == taken.action.kind or ask.action.kind in TELLS_ONLY
        name = ask.alarm.rule.name
        after[name] = _served(ask, step) if served else replace(after[name], waiting=True)
    also = tuple(ask.alarm.rule.name for ask in asks if ask is not taken)
    notified = tuple(ask.alarm.rule.name for ask in asks if ask.action.kind == "notify")
    decision = _decision(step, taken, also, dry_run)
    if decision.kind == "rollback":
        decision = replace(decision, to=back)
    failed = tuple(ask.alarm.rule.name for ask in asks if _has_failed(step, ask))
    return Outcome(decision, after, cured, notified, failed, lacking)


def _served(ask: _Ask, step: int) -> Standing:
    """The standing of a rule after the action that it asked for."""
    standing = ask.standing
    restarts = (
        _one_more(standing.restarts, standing.rung) if ask.action.kind == "restart" else standing.restarts
    )
    return replace(
        standing,
        used=standing.used + 1,
        acted=step,
        waiting=False,
        spent=_one_more(standing.spent, standing.rung),
        restarts=restarts,
        halted=standing.halted or ask.action.kind == "halt",
    )


def _has_failed(step: int, ask: _Ask) -> bool:
    """Whether it asks because an action that had its time to show was no cure."""
    acted = ask.standing.acted
    changes = ask.action.kind not in TELLS_ONLY or ask.standing.rung > 0
    return changes and acted is not None and step - acted >= ask.alarm.rule.settle


def _wants_back(alarm: Alarm, standings: Mapping[str, Standing]) -> bool:
    """Whether the rule begins to fire and has a rollback at or before the rung that it stands on."""
    rung = standings[alarm.rule.name].rung
    return alarm.fresh and any(action.kind == "rollback" for action in alarm.rule.ladder[: rung + 1])


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
        if standing.halted:
            after[name] = replace(standing, fired=None)
            continue
        if standing.acted is not None:
            cured.append(name)
        after[name] = Standing(spent=standing.spent, restarts=standing.restarts)
    return after, tuple(cured)


def _ask(step: int, alarm: Alarm, standing: Standing, back: int | None) -> _Ask | None:
    """The action that the rule asks for at this step, and its standing moved to that action's rung."""
    ladder, stood = alarm.rule.ladder, standing.rung
    if IN_A_ROW in ladder[stood].settings and step - (standing.acted or 0) > 1:
        standing = replace(standing, used=0)
    while standing.rung < len(ladder) and (
        standing.uses(ladder[standing.rung]) >= _times(ladder, standing.rung)
        or _worn_out(ladder[standing.rung], standing)
        or (ladder[standing.rung].kind == "rollback" and back is None)
    ):
        standing = replace(standing, rung=standing.rung + 1, used=0)
    if standing.rung == len(ladder):
        return None
    action = ladder[standing.rung]
    # A skipped step is no cure that needs time to show: what comes after it is due as soon as it is used up.
    skipped = standing.rung > stood and ladder[stood].kind == "skip"
    settled = standing.acted is None or step - standing.acted >= alarm.rule.settle
    due = settled or (skipped and (alarm.holds or standing.waiting))
    if action.kind == "skip":
        wanted = alarm.holds
    elif action.kind in TELLS_ONLY:
        wanted = alarm.fresh or (due and standing.used == 0)
    else:
        wanted = due and (alarm.fresh or alarm.holds or standing.waiting)
    if wanted:
        return _Ask(alarm, standing, action)
    gone_back = ladder[stood].kind == "rollback" and not settled and alarm.holds
    return _meanwhile(alarm, standing, ladder[:stood]) if gone_back else None


def _meanwhile(alarm: Alarm, standing: Standing, rungs: Sequence[Action]) -> _Ask | None:
    """Leave out a batch that is as bad after a rollback: its step would undo what was brought back."""
    skip = next((rung for rung, action in enumerate(rungs) if action.kind == "skip"), None)
    if skip is None:
        return None
    return _Ask(alarm, replace(standing, rung=skip), rungs[skip], meanwhile=True)


def _worn_out(action: Action, standing: Standing) -> bool:
    """Whether the rung helped so often for a while only that it helps no more."""
    taken = _at(standing.spent, standing.rung)
    return action.kind in WEARS_OUT and taken >= CURES * (action.times or 1)


def _at(counts: tuple[int, ...], rung: int) -> int:
    """What was counted of a rung; missing ones never came up."""
    return counts[rung] if rung < len(counts) else 0


def _one_more(counts: tuple[int, ...], rung: int) -> tuple[int, ...]:
    padded = [*counts, *[0] * (rung + 1 - len(counts))]
    padded[rung] += 1
    return tuple(padded)


def _times(ladder: Sequence[Action], rung: int) -> float:
    """How often a rung may be taken: what the rule says; else once, or without end on the last."""
    limit = ladder[rung].limit
    if limit is not None:
        return limit
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
        use=0 if ask.meanwhile else ask.standing.uses(ask.action) + 1,
        reason=ask.alarm.reason,
        also=also,
        dry_run=dry_run,
    )
