from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.errors import Place
from stepguard.recover.decision import (
    CURES,
    STRENGTH,
    TELLS_ONLY,
    WEARS_OUT,
    Alarm,
    Decision,
    Outcome,
    Standing,
    decide,
)
from stepguard.rules.expression import compile_condition
from stepguard.rules.rule import Action, ActionKind, Rule

CONDITION = compile_condition("loss > 1")


class Sight(NamedTuple):
    """What the engine says of a rule at a step."""

    firing: bool
    fresh: bool = False
    holds: bool = False


CLEAR, KEPT, HOLDS, FRESH = Sight(False), Sight(True), Sight(True, holds=True), Sight(True, True, True)


def rule(*ladder: Action | ActionKind, name: str = "r", settle: int = 20) -> Rule:
    rungs = tuple(Action(rung) if isinstance(rung, str) else rung for rung in ladder)
    return Rule(name, CONDITION, Place("r.yaml", 1, 1), ladder=rungs, settle=settle)


def begin_fresh(sights: Sequence[Sight]) -> list[Sight]:
    """An alert that begins to fire is fresh, and holds."""
    before = [CLEAR, *sights]
    return [
        FRESH if now.firing and not last.firing else now for last, now in zip(before, sights, strict=False)
    ]


def run(
    rules: Sequence[Rule],
    histories: Sequence[Sequence[Sight]],
    *,
    standings: Mapping[str, Standing] | None = None,
    dry_run: bool = False,
    back: int | None = 0,
) -> list[Outcome]:
    """Decide step by step, each from the standings that the step before left."""
    settle = {each.name: each.settle for each in rules}
    now, outcomes = dict(standings or {}), list[Outcome]()
    for step, sights in enumerate(zip(*histories, strict=True)):
        outcome = decide(step, alarms(rules, sights), now, settle, back=back, dry_run=dry_run)
        now = dict(outcome.standings)
        outcomes.append(outcome)
    return outcomes


def alarms(rules: Sequence[Rule], sights: Sequence[Sight]) -> list[Alarm]:
    return [
        Alarm(each, sight.fresh, sight.holds, f"layer of {each.name}", f"reason of {each.name}")
        for each, sight in zip(rules, sights, strict=True)
        if sight.firing
    ]


def acted(outcomes: Sequence[Outcome]) -> list[tuple[int, str, int, int]]:
    """Step, kind, rung and use of every decision."""
    return [(d.step, d.kind, d.rung, d.use) for outcome in outcomes if (d := outcome.decision) is not None]


def left_out(decision: Decision) -> bool:
    """Whether it is a batch after a rollback that is as bad, of which a ladder takes no note."""
    return decision.kind == "skip" and decision.use == 0


kinds = st.sampled_from(STRENGTH)
rungs = st.builds(Action, kinds, st.just({}), st.none() | st.integers(1, 3))
ladders = st.lists(rungs, min_size=1, max_size=4)
sights = st.sampled_from([CLEAR, KEPT, HOLDS, HOLDS, FRESH])
histories = st.lists(sights, min_size=1, max_size=30).map(begin_fresh)
settles = st.integers(0, 6)


def times(ladder: Sequence[Action], rung: int) -> float:
    last = rung == len(ladder) - 1
    return ladder[rung].times or (math.inf if last else 1)


class Definition:
    """One rule's ladder, told from everything that happened since it stood at its foot."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.taken: list[tuple[int, int]] = []
        """Step and rung of each action."""
        self.ever: list[int] = []
        """The rung of every action, cured or not."""
        self.fired: int | None = None

    def cures(self, step: int, sight: Sight) -> bool:
        """Whether the alert has been clear for `settle` steps, and something had been done about it."""
        if sight.firing or self.fired is None or step - self.fired < self.rule.settle:
            return False
        if any(self.rule.ladder[rung].kind == "halt" for _, rung in self.taken):
            self.fired = None
            return False
        had_acted = bool(self.taken)
        self.taken, self.fired = [], None
        return had_acted

    def next_rung(self) -> int | None:
        rung = self.taken[-1][1] if self.taken else 0
        while rung < len(self.rule.ladder) and self.used_up(rung):
            rung += 1
        return rung if rung < len(self.rule.ladder) else None

    def used_up(self, rung: int) -> bool:
        action = self.rule.ladder[rung]
        worn_out = action.kind in WEARS_OUT and self.ever.count(rung) >= CURES * (action.times or 1)
        return self.uses(rung) >= times(self.rule.ladder, rung) or worn_out

    def uses(self, rung: int) -> int:
        """Nothing gives a restart back."""
        restarts = self.rule.ladder[rung].kind == "restart"
        return (self.ever if restarts else [used for _, used in self.taken]).count(rung)

    def asks(self, step: int, sight: Sight) -> int | None:
        """The rung it asks for at this step."""
        if not sight.firing:
            return None
        self.fired = step
        rung = self.next_rung()
        if rung is None:
            return None
        due = not self.taken or step - self.taken[-1][0] >= self.rule.settle
        untried = all(used != rung for _, used in self.taken)
        # A skip is no cure that needs time to show.
        before = self.rule.ladder[self.taken[-1][1]].kind if self.taken else None
        due = due or (untried and before == "skip" and sight.holds)
        kind = self.rule.ladder[rung].kind
        if kind == "skip":
            wanted = sight.holds
        elif kind in ("warn", "notify", "snapshot"):
            wanted = sight.fresh or (due and untried)
        else:
            wanted = due and sight.holds
        if wanted:
            self.taken.append((step, rung))
            self.ever.append(rung)
            return rung
        # What a rollback has brought back is not given to a batch that is as bad.
        skip = next((r for r, a in enumerate(self.rule.ladder[: self.stands()]) if a.kind == "skip"), None)
        return skip if before == "rollback" and sight.holds and not due else None

    def stands(self) -> int:
        return self.taken[-1][1] if self.taken else 0


@given(ladders, histories, settles)
def test_a_ladder_alone_goes_as_its_definition_says(
    ladder: list[Action], history: list[Sight], settle: int
) -> None:
    only = rule(*ladder, settle=settle)
    defined = Definition(only)
    for step, (sight, outcome) in enumerate(zip(history, run([only], [history]), strict=True)):
        assert outcome.cured == (("r",) if defined.cures(step, sight) else ())
        rung = defined.asks(step, sight)
        decision = outcome.decision
        assert (None if decision is None else decision.rung) == rung
        if decision is not None:
            assert decision.step == step
            assert decision.kind == ladder[decision.rung].kind
            assert decision.rungs == len(ladder)
            assert decision.use == (0 if left_out(decision) else defined.uses(decision.rung))


@given(ladders, st.integers(1, 6))
def test_no_rung_is_taken_more_often_than_its_budget_and_then_there_is_no_decision(
    ladder: list[Action], settle: int
) -> None:
    budgets = [min(times(ladder, rung), 3) for rung in range(len(ladder))]
    limited = [Action(rung.kind, {}, int(budget)) for rung, budget in zip(ladder, budgets, strict=True)]
    # Fresh at every step: an alert at one more layer each time.
    steps = (settle + 1) * (int(sum(budgets)) + 2)
    outcomes = run([rule(*limited, settle=settle)], [[FRESH] * steps])
    done = [each for each in acted(outcomes) if each[-1] > 0]
    assert [(rung, use) for _, _, rung, use in done] == [
        (rung, use + 1) for rung, budget in enumerate(budgets) for use in range(int(budget))
    ]
    assert all(outcome.decision is None for outcome in outcomes[done[-1][0] + 1 :])


def test_what_helps_for_a_while_only_wears_out() -> None:
    ladder = Action("rollback", {}, 2), Action("restart")
    outcomes = run([rule(*ladder, settle=2)], [[FRESH, CLEAR, CLEAR, CLEAR] * 12])
    kinds = [kind for _, kind, _, _ in acted(outcomes)]
    assert kinds == ["rollback"] * 2 * CURES + ["restart"] * 2
    assert all(outcome.failed == () for outcome in outcomes)


def test_what_comes_after_a_skip_is_due_at_once_where_a_rollback_between_them_is_not_possible() -> None:
    ladder = Action("skip", {}, 2), Action("rollback"), Action("restart")
    outcomes = run([rule(*ladder, settle=20)], [[FRESH, HOLDS, HOLDS]], back=None)
    assert [kind for _, kind, _, _ in acted(outcomes)] == ["skip", "skip", "restart"]


def test_an_action_that_was_no_cure_is_told() -> None:
    ladder = Action("lower_lr", {"by": 0.5}), Action("restart")
    outcomes = run([rule(*ladder, settle=2)], [[FRESH, HOLDS, HOLDS]])
    assert [outcome.failed for outcome in outcomes] == [(), (), ("r",)]


@given(ladders, histories, settles)
def test_without_a_snapshot_a_ladder_goes_as_one_without_rollbacks(
    ladder: list[Action], history: list[Sight], settle: int
) -> None:
    """But for the places of its rungs; what it would have done is told."""
    bare = [action for action in ladder if action.kind != "rollback"]
    (found, *_), expected = [run([rule(*ladder, settle=settle)], [history], back=None)], []
    if bare and ladder[-1].kind != "rollback":
        expected = run([rule(*bare, settle=settle)], [history])
    kinds = [(step, kind, use) for step, kind, _, use in acted(found)]
    if expected:
        assert kinds == [(step, kind, use) for step, kind, _, use in acted(expected)]
    assert all(kind != "rollback" for _, kind, _ in kinds)
    first = next((step for step, sight in enumerate(history) if sight.fresh), None)
    if first is not None and ladder[0].kind == "rollback":
        assert found[first].lacking == ("r",)


def test_a_batch_that_is_as_bad_after_a_rollback_is_left_out_while_that_has_its_time_to_show() -> None:
    ladder = Action("skip", {}, 2), Action("rollback", {}, 2), Action("restart")
    outcomes = run(
        [rule(*ladder, settle=3)], [begin_fresh([HOLDS, HOLDS, HOLDS, HOLDS, CLEAR, HOLDS, HOLDS])]
    )
    assert acted(outcomes) == [
        (0, "skip", 0, 1),
        (1, "skip", 0, 2),
        (2, "rollback", 1, 1),
        (3, "skip", 0, 0),
        (5, "rollback", 1, 2),
        (6, "skip", 0, 0),
    ]


def test_a_count_in_a_row_begins_anew_after_a_step_that_was_taken() -> None:
    ladder = Action("skip", {"in_a_row": 3}), Action("restart")
    outcomes = run([rule(*ladder, settle=9)], [begin_fresh([HOLDS, HOLDS, CLEAR, *[HOLDS] * 4])])
    assert [(step, kind, use) for step, kind, _, use in acted(outcomes)] == [
        (0, "skip", 1),
        (1, "skip", 2),
        (3, "skip", 1),
        (4, "skip", 2),
        (5, "skip", 3),
        (6, "restart", 1),
    ]


def test_a_rollback_says_where_it_goes_back_to() -> None:
    (outcome,) = run([rule(Action("rollback"))], [[FRESH]], back=7)
    assert outcome.decision is not None
    assert (outcome.decision.to, outcome.lacking) == (7, ())
    (other,) = run([rule(Action("skip"))], [[FRESH]], back=7)
    assert other.decision is not None
    assert other.decision.to is None


@given(st.integers(1, 12), st.integers(1, 3))
def test_the_next_rung_is_taken_after_settle_steps_of_firing_and_not_before(settle: int, tries: int) -> None:
    ladder = Action("lower_lr", {"by": 0.5}, tries), Action("restart"), Action("halt")
    outcomes = run([rule(*ladder, settle=settle)], [begin_fresh([HOLDS] * (settle * (tries + 2) + 1))])
    expected = ["lower_lr"] * tries + ["restart"] + ["halt"] * 2
    assert [(step, kind) for step, kind, _, _ in acted(outcomes)] == [
        (place * settle, kind) for place, kind in enumerate(expected)
    ]


@given(histories)
def test_skip_is_taken_at_every_step_at_which_the_condition_holds(history: list[Sight]) -> None:
    outcomes = run([rule("skip")], [history])
    assert [o.decision is not None for o in outcomes] == [sight.holds for sight in history]


def test_what_comes_after_a_spent_skip_does_not_wait_for_settle() -> None:
    outcomes = run([rule(Action("skip", {}, 3), "lower_lr", settle=4)], [begin_fresh([HOLDS] * 8)])
    assert acted(outcomes) == [
        (0, "skip", 0, 1),
        (1, "skip", 0, 2),
        (2, "skip", 0, 3),
        (3, "lower_lr", 1, 1),
        (7, "lower_lr", 1, 2),
    ]


@pytest.mark.parametrize("kind", sorted(TELLS_ONLY))
def test_what_only_tells_is_not_repeated_while_an_alert_goes_on(kind: ActionKind) -> None:
    history = begin_fresh([HOLDS] * 100)
    assert [step for step, *_ in acted(run([rule(kind, settle=3)], [history]))] == [0]
    history[50] = FRESH  # at one more layer
    assert [step for step, *_ in acted(run([rule(kind, settle=3)], [history]))] == [0, 50]


def test_a_warning_comes_again_when_the_alert_does() -> None:
    history = begin_fresh([HOLDS, CLEAR, HOLDS, CLEAR, CLEAR, HOLDS])
    assert [step for step, *_ in acted(run([rule("warn", settle=2)], [history]))] == [0, 2, 5]


def test_after_a_cure_the_ladder_begins_at_its_foot() -> None:
    history = begin_fresh([HOLDS, *[CLEAR] * 3, HOLDS])
    outcomes = run([rule("lower_lr", "halt", settle=3)], [history])
    assert [outcome.cured for outcome in outcomes] == [(), (), (), ("r",), ()]
    assert acted(outcomes) == [(0, "lower_lr", 0, 1), (4, "lower_lr", 0, 1)]


def test_where_a_dry_run_would_have_halted_it_stays() -> None:
    history = begin_fresh([HOLDS, *[CLEAR] * 2, HOLDS, *[CLEAR] * 3, HOLDS])
    outcomes = run([rule("lower_lr", "halt", settle=3)], [history], dry_run=True)
    assert acted(outcomes) == [(0, "lower_lr", 0, 1), (3, "halt", 1, 1), (7, "halt", 1, 2)]
    assert not any(outcome.cured for outcome in outcomes)
    assert outcomes[6].standings["r"].fired is None, "nothing is due until it fires again"


def test_one_clear_step_too_few_is_no_cure() -> None:
    history = begin_fresh([HOLDS, *[CLEAR] * 2, HOLDS])
    outcomes = run([rule("lower_lr", "halt", settle=3)], [history])
    assert not any(outcome.cured for outcome in outcomes)
    assert acted(outcomes) == [(0, "lower_lr", 0, 1), (3, "halt", 1, 1)]


def test_what_cleared_without_an_action_is_no_cure() -> None:
    ladder = Action("restart", {}, 1)
    spent = {"r": Standing(restarts=(1,))}
    outcomes = run([rule(ladder, settle=1)], [begin_fresh([HOLDS, CLEAR])], standings=spent)
    assert acted(outcomes) == []
    assert not any(outcome.cured for outcome in outcomes)


@given(ladders, histories, settles)
def test_the_next_attempt_begins_at_the_foot_of_each_ladder_and_has_all_but_its_restarts(
    ladder: list[Action], history: list[Sight], settle: int
) -> None:
    only = rule(*ladder, settle=settle)
    first = run([only], [history])
    restarts = Counter(o.decision.rung for o in first if o.decision and o.decision.kind == "restart")
    carried = {name: standing.next_attempt() for name, standing in first[-1].standings.items()}
    assert all(
        (each.rung, each.used, each.acted, each.fired) == (0, 0, None, None) for each in carried.values()
    )
    for outcome in run([only], [history], standings=carried):
        if outcome.decision is not None and outcome.decision.kind == "restart":
            restarts[outcome.decision.rung] += 1
            assert outcome.decision.use == restarts[outcome.decision.rung]
    for rung, taken in restarts.items():
        times = ladder[rung].times or (1 if rung < len(ladder) - 1 else math.inf)
        assert taken <= times, "neither a cure nor an attempt gives one back"
    if all(action.kind != "restart" for action in ladder):
        assert acted(run([only], [history], standings=carried)) == acted(first)


def test_bad_batches_are_skipped_in_the_next_attempt_as_in_the_first() -> None:
    ladder = Action("skip", {}, 2), Action("restart", {}, 1), Action("halt")
    first = run([rule(*ladder)], [begin_fresh([HOLDS] * 3)])
    assert acted(first) == [(0, "skip", 0, 1), (1, "skip", 0, 2), (2, "restart", 1, 1)]
    carried = {name: standing.next_attempt() for name, standing in first[-1].standings.items()}
    second = run([rule(*ladder)], [begin_fresh([HOLDS] * 3)], standings=carried)
    assert acted(second) == [(0, "skip", 0, 1), (1, "skip", 0, 2), (2, "halt", 2, 1)]


def test_attempts_share_the_budget_of_a_restart() -> None:
    ladder = Action("restart", {}, 2), Action("halt")
    standings: dict[str, Standing] = {}
    done: list[tuple[int, str, int, int]] = []
    for _ in range(3):
        outcome = run([rule(*ladder)], [[FRESH]], standings=standings)[-1]
        done += acted([outcome])
        standings = {name: standing.next_attempt() for name, standing in outcome.standings.items()}
    assert done == [(0, "restart", 0, 1), (0, "restart", 0, 2), (0, "halt", 1, 1)]


@st.composite
def several(draw: st.DrawFn) -> tuple[list[Rule], list[list[Sight]]]:
    """A few rules, and what the engine says of each over the same steps."""
    count, steps = draw(st.integers(2, 4)), draw(st.integers(1, 15))
    rules = [rule(*draw(ladders), name=f"r{i}", settle=draw(settles)) for i in range(count)]
    seen = st.lists(sights, min_size=steps, max_size=steps).map(begin_fresh)
    return rules, [draw(seen) for _ in rules]


def alone(step: int, alarm: Alarm, standings: Mapping[str, Standing]) -> Decision | None:
    """What a rule would get if it were the only one that fires."""
    name = alarm.rule.name
    return decide(step, [alarm], standings, {name: alarm.rule.settle}, back=0).decision


@given(several())
def test_the_strongest_wins_the_first_of_equals_and_the_others_are_named(
    given_: tuple[list[Rule], list[list[Sight]]],
) -> None:
    rules, seen = given_
    standings: Mapping[str, Standing] = {}
    for step, (at, outcome) in enumerate(zip(zip(*seen, strict=True), run(rules, seen), strict=True)):
        asked = [d for a in alarms(rules, at) if (d := alone(step, a, standings)) is not None]
        decision = outcome.decision
        assert (decision is None) == (not asked)
        if decision is not None:
            best = max(STRENGTH.index(each.kind) for each in asked)
            winner = next(each for each in asked if STRENGTH.index(each.kind) == best)
            assert decision.rule == winner.rule
            assert decision.kind == winner.kind
            assert (decision.rung, decision.use) == (winner.rung, winner.use)
            assert decision.reason == f"reason of {winner.rule}"
            assert decision.layer == f"layer of {winner.rule}"
            assert list(decision.also) == [each.rule for each in asked if each.rule != winner.rule]
        standings = outcome.standings


@given(several())
def test_a_loser_of_another_kind_spends_nothing_and_asks_again_at_the_next_step(
    given_: tuple[list[Rule], list[list[Sight]]],
) -> None:
    rules, seen = given_
    outcomes = run(rules, seen)
    before: Mapping[str, Standing] = {}
    for step, outcome in enumerate(outcomes):
        decision = outcome.decision
        asked = alarms(rules, [history[step] for history in seen])
        losers = [
            (alarm, ask)
            for alarm in asked
            if (ask := alone(step, alarm, before)) is not None
            and decision is not None
            and ask.kind != decision.kind
            and ask.kind not in TELLS_ONLY
        ]
        for alarm, ask in losers:
            name = alarm.rule.name
            standing, previous = outcome.standings[name], before.get(name, Standing())
            assert (standing.rung, standing.used, standing.acted) == (
                previous.rung,
                previous.used,
                previous.acted,
            )
            if left_out(ask):
                continue
            holds = ask.kind == "skip"
            again = alone(step + 1, Alarm(alarm.rule, fresh=False, holds=holds), outcome.standings)
            assert again is not None
            assert (again.kind, again.rung, again.use) == (ask.kind, ask.rung, ask.use)
        before = outcome.standings


@given(several())
def test_what_lost_to_its_own_kind_is_served(given_: tuple[list[Rule], list[list[Sight]]]) -> None:
    rules, seen = given_
    before: Mapping[str, Standing] = {}
    for step, outcome in enumerate(run(rules, seen)):
        for alarm in alarms(rules, [history[step] for history in seen]):
            ask = alone(step, alarm, before)
            if ask is None or outcome.decision is None or left_out(ask):
                continue
            if ask.kind == outcome.decision.kind:
                standing = outcome.standings[alarm.rule.name]
                uses = standing.uses(alarm.rule.ladder[standing.rung])
                assert (standing.rung, uses, standing.acted) == (ask.rung, ask.use, step)
        before = outcome.standings


@given(several())
def test_a_dry_run_decides_the_same_and_says_so(given_: tuple[list[Rule], list[list[Sight]]]) -> None:
    rules, seen = given_
    wet, dry = run(rules, seen), run(rules, seen, dry_run=True)
    assert acted(wet) == acted(dry)
    assert all(not o.decision.dry_run for o in wet if o.decision)
    assert all(o.decision.dry_run for o in dry if o.decision)
    assert [o.standings for o in wet] == [o.standings for o in dry]


@given(several())
def test_to_decide_is_pure(given_: tuple[list[Rule], list[list[Sight]]]) -> None:
    rules, seen = given_
    standings = run(rules, seen)[-1].standings
    settle = {each.name: each.settle for each in rules}
    asked = alarms(rules, [history[0] for history in seen])
    kept = copy.deepcopy((asked, dict(standings), settle))
    step = len(seen[0])
    once, twice = (decide(step, asked, standings, settle, back=0) for _ in range(2))
    assert once == twice
    assert (asked, dict(standings), settle) == kept


def test_every_action_has_its_strength() -> None:
    assert sorted(STRENGTH) == sorted(get_args(ActionKind))
    assert STRENGTH[-1] == "halt"
