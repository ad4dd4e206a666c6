"""Attempts that have to do better than the best one before them: their losses are compared step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest

from stepguard.recover.attempt import Attempt
from stepguard.recover.contest import LEAST, Race
from stepguard.recover.curve import TOLD, Curve, behind

STEPS = 200


def curve(losses: Iterable[float]) -> Curve:
    made = Curve()
    for step, loss in enumerate(losses):
        made.see(step, loss)
    return made


def falling(to: float, steps: int = STEPS) -> Curve:
    return curve(2.0 + (to - 2.0) * step / (steps - 1) for step in range(steps))


def first_behind(challenger: Curve, best: Curve) -> int | None:
    return next((step for step in range(len(challenger)) if behind(challenger, best, step)), None)


def test_a_challenger_that_has_gained_nothing_ends_once_it_can_be_told() -> None:
    assert first_behind(falling(2.0), falling(0.5)) == TOLD * STEPS


def test_it_may_have_gained_less_while_there_is_time_to_make_it_up() -> None:
    found = [first_behind(falling(2.0 - 1.5 * gained), falling(0.5)) for gained in (0.4, 0.7, 0.9)]
    assert all(TOLD * STEPS <= (end or 0) < STEPS for end in found)
    assert found == sorted(found, key=lambda end: end or 0)
    assert len(set(found)) == 3


def test_one_that_is_hardly_worse_ends_at_its_last_step() -> None:
    assert first_behind(falling(0.6), falling(0.5)) == STEPS - 1
    assert first_behind(falling(0.5), falling(0.5)) is None


def test_a_better_one_goes_on_whatever_it_did_at_first() -> None:
    losses = [40.0 if step < 0.3 * STEPS else 0.4 for step in range(STEPS)]
    assert first_behind(curve(losses), falling(0.5)) is None


@pytest.mark.parametrize("shift", [0.0, -40.0, 1e4])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_neither_scale_nor_shift_of_the_loss_matters(shift: float, scale: float) -> None:
    def moved(to: float) -> Curve:
        return curve(shift + scale * (2.0 + (to - 2.0) * step / STEPS) for step in range(STEPS))

    if scale < 1.0 < abs(shift):
        pytest.skip("less than what a float holds beside such a shift")
    assert first_behind(moved(2.0), moved(0.5)) == TOLD * STEPS
    assert first_behind(moved(0.4), moved(0.5)) is None


def test_losses_that_are_no_numbers_or_missing_are_the_worst() -> None:
    lost = curve([1.0] * 50 + [math.nan] * 150)
    assert first_behind(lost, falling(0.5)) == TOLD * STEPS
    assert first_behind(falling(1.0), lost) is None
    late = Curve()
    late.see(120, 0.1)
    assert len(late) == 121
    assert late.level(100, 10) == math.inf


def test_batches_that_were_left_out_tell_nothing_of_what_the_weights_are_worth() -> None:
    one_in_ten = Curve()
    for step in range(STEPS):
        if step % 10:
            one_in_ten.leave_out(step)
        else:
            one_in_ten.see(step, 2.0 - 1.5 * step / STEPS)
    assert len(one_in_ten) == STEPS
    assert one_in_ten.last == pytest.approx(2.0 - 1.5 * 190 / STEPS)
    assert first_behind(falling(1.0), one_in_ten) is not None
    begun = Curve()
    begun.leave_out(0)
    assert begun.last == math.inf, "there is nothing to go by yet"


def ended(attempt: Attempt, losses: Curve) -> Attempt:
    attempt.curve, attempt.last = losses, False
    return attempt


def run(
    race: Race[str], attempt: Attempt, losses: Callable[[Attempt], Curve], most: int = 9
) -> list[Attempt]:
    """All attempts from the one that ends at first; a challenger ends where it falls behind."""
    made = [ended(attempt, losses(attempt))]
    race.completed(attempt, f"attempt {attempt.number}")
    while len(made) < most and (following := race.challenger(made[-1])) is not None:
        whole = losses(following)
        end = first_behind(whole, following.best) if following.best else None
        made.append(ended(following, whole if end is None else falling(9.0, end + 1)))
        if end is None:
            race.completed(following, f"attempt {following.number}")
        else:
            race.over(following)
    return made


def test_the_pace_above_is_tried_then_the_one_below_and_the_best_stays() -> None:
    race = Race[str](3.0)
    first = Attempt(number=2, pace=0.01, init="lsuv", lr_scale=0.3, clip=1.0, seed=4)
    made = run(race, first, lambda attempt: falling(0.5 if attempt.pace == 0.01 else 1.9))
    assert [attempt.pace for attempt in made] == [0.01, 0.03, 0.005]
    assert {(each.init, each.lr_scale, each.clip, each.seed) for each in made} == {("lsuv", 0.3, 1.0, 4)}
    assert [attempt.number for attempt in made] == [2, 3, 4]
    assert race.result == "attempt 2"


@pytest.mark.parametrize("normalised", [False, True])
def test_where_next_to_nothing_was_learned_ten_times_the_pace_is_tried_from_elsewhere(
    normalised: bool,
) -> None:
    race = Race[str](3.0)
    first = Attempt(number=2, pace=0.01, normalised=normalised)
    ends = {0.01: 1.9, 0.1: 0.5}
    made = run(race, first, lambda attempt: falling(ends.get(attempt.pace or 0.0, 1.0)))
    assert [(attempt.init, attempt.pace) for attempt in made[:2]] == [(None, 0.01), ("lsuv", 0.1)]
    assert race.result == "attempt 3"


def test_one_that_began_far_above_the_others_has_not_learned_much_by_coming_down() -> None:
    race = Race[str](9.0)
    race.over(ended(Attempt(), curve([2.0, math.inf, math.inf])))
    cold = curve([90.0] * 20 + [1.5] * (STEPS - 20))
    made = run(
        race, Attempt(number=2, pace=0.01), lambda attempt: cold if attempt.number == 2 else falling(0.5)
    )
    assert len(made) > 1
    assert len(run(Race[str](9.0), Attempt(pace=0.01), lambda _: cold)) == 1


def noisy(around: float, by: float) -> Curve:
    return curve(around + (by if step % 2 else -by) for step in range(STEPS))


def test_what_is_as_good_as_one_that_was_stuck_takes_its_place() -> None:
    stuck, gained = noisy(2.0, 0.3), curve([4.0] * 10 + [2.0 + 0.3 * (-1) ** step for step in range(190)])
    assert (stuck.stuck, gained.stuck) == (True, False)
    assert first_behind(noisy(2.05, 0.3), stuck) is None
    assert first_behind(noisy(2.05, 0.3), gained) == STEPS - 1
    assert first_behind(noisy(3.0, 0.3), stuck) == TOLD * STEPS, "one that does surely worse does not"


def test_a_curve_that_was_saved_goes_on() -> None:
    whole, again = falling(0.5), Curve()
    again.load_state_dict(curve([2.0, math.nan, 1.0]).state_dict())
    again.see(3, 0.25)
    assert (len(again), again.level(0, 1), again.level(1, 1), again.level(3, 2)) == (4, 2.0, math.inf, 0.625)
    again.load_state_dict(whole.state_dict())
    assert again.state_dict()["losses"].tolist() == whole.state_dict()["losses"].tolist()


def test_what_does_better_is_the_one_to_beat() -> None:
    race = Race[str](9.0)
    best = {0.01: 0.9, 0.03: 0.7, 0.09: 1.5, 0.015: 1.6}
    made = run(race, Attempt(number=2, pace=0.01), lambda attempt: falling(best[attempt.pace or 0.0]))
    assert [attempt.pace for attempt in made] == [0.01, 0.03, 0.09, 0.015]
    assert race.result == "attempt 3"
    assert made[-1].best is made[1].curve


def test_a_faster_one_is_initialised_anew_and_a_slower_one_begins_as_the_best_did() -> None:
    race = Race[str](9.0)
    made = run(race, Attempt(number=2, pace=0.01), lambda each: falling(0.5 if each.pace == 0.01 else 1.9))
    assert [(each.pace, each.init) for each in made] == [(0.01, None), (0.03, "lsuv"), (0.005, None)]


def test_behind_normalisations_a_faster_one_begins_as_the_best_did_too() -> None:
    race, first = Race[str](9.0), Attempt(number=2, pace=0.01, normalised=True)
    made = run(race, first, lambda each: falling(0.5 if each.pace == 0.01 else 1.9))
    assert [(each.pace, each.init) for each in made] == [(0.01, None), (0.03, None), (0.005, None)]


def test_the_budget_holds() -> None:
    for budget, count in ((1.0, 1), (1.9, 1), (2.0, 2), (2.9, 3)):
        race = Race[str](budget)
        made = run(
            race, Attempt(number=2, pace=0.01), lambda each: falling(0.5 if each.pace == 0.01 else 1.9)
        )
        assert len(made) == count


@pytest.mark.parametrize(
    ("attempt", "losses"),
    [
        (Attempt(), falling(0.5)),
        (Attempt(number=2, lr_scale=0.5), falling(0.5)),
        (Attempt(number=2, pace=0.01), falling(0.01)),
        (Attempt(number=2, pace=0.01), falling(0.5, LEAST - 1)),
        (Attempt(number=2, pace=0.01, handed=True), falling(0.5)),
    ],
    ids=[
        "needed no remedy",
        "a remedy that was named",
        "nothing left to gain",
        "too short",
        "by stepguard run",
    ],
)
def test_there_is_no_challenger(attempt: Attempt, losses: Curve) -> None:
    race = Race[str](3.0)
    race.completed(ended(attempt, losses), "this")
    assert race.challenger(attempt) is None
    assert race.result == "this"


def test_the_last_attempt_has_none() -> None:
    race, attempt = Race[str](3.0), ended(Attempt(number=2, pace=0.01), falling(0.5))
    attempt.last = True
    race.completed(attempt, "this")
    assert race.challenger(attempt) is None


def test_one_that_did_badly_though_no_rule_fired_is_challenged_with_a_remedy() -> None:
    race, first = Race[str](3.0), Attempt(doubt={"lr": 0.1, "pace": 0.01, "init": "lsuv"})
    made = run(race, first, lambda attempt: falling(1.9 if attempt.number == 1 else 0.9))
    assert [attempt.pace for attempt in made] == [None, 0.01, 0.03]
    assert (made[1].init, made[1].lr_scale) == ("lsuv", 0.1)
    assert race.result == "attempt 3"
