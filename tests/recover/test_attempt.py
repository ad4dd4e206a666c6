from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepguard.errors import RestartRequested, StepguardError, StepguardWarning, TrainingHalted
from stepguard.recover.attempt import Attempt, current_attempt
from stepguard.recover.decision import Standing
from stepguard.recover.supervise import supervise

Remedy = dict[str, float | str]

remedies: st.SearchStrategy[Remedy] = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([0.1, 0.5, 2.0]),
        "init": st.sampled_from(["kaiming", "lsuv"]),
        "clip": st.sampled_from([0.5, 1.0, 4.0]),
        "seed": st.integers(0, 5),
    },
)


def restart(remedy: Remedy | None = None) -> RestartRequested:
    return RestartRequested("because", step=3, rule="r", remedy=remedy)


def failing(
    remedies: list[Remedy], seen: list[Attempt], then: Callable[[], object] = lambda: "well"
) -> Callable[[Attempt], object]:
    """A training that asks for one restart after another, and then ends."""

    def train(attempt: Attempt) -> object:
        seen.append(attempt)
        if len(seen) <= len(remedies):
            raise restart(remedies[len(seen) - 1])
        return then()

    return train


@given(st.lists(remedies, max_size=5), st.integers(0, 100))
def test_every_attempt_adds_its_remedy_to_those_before(given_: list[Remedy], seed: int) -> None:
    seen: list[Attempt] = []
    assert supervise(failing(given_, seen), attempts=6, seed=seed) == "well"
    assert [attempt.number for attempt in seen] == list(range(1, len(given_) + 2))
    for count, attempt in enumerate(seen):
        so_far = given_[:count]
        assert attempt.lr_scale == pytest.approx(np.prod([float(each.get("lr", 1)) for each in so_far]))
        assert attempt.init == next((each["init"] for each in reversed(so_far) if "init" in each), None)
        assert attempt.clip == min((each["clip"] for each in so_far if "clip" in each), default=None)
        assert attempt.seed == seed + sum(int(each.get("seed", 0)) for each in so_far)


def test_the_first_attempt_changes_nothing() -> None:
    attempt = supervise(lambda attempt: attempt)
    assert (attempt.number, attempt.seed, attempt.lr_scale) == (1, 0, 1.0)
    assert (attempt.init, attempt.clip, attempt.standings) == (None, None, {})


def test_of_ladders_what_restarts_have_spent_is_carried_on() -> None:
    stood = Standing(2, 3, acted=7, fired=9, waiting=True, spent=(3, 0, 1), restarts=(0, 0, 2))
    assert Attempt(standings={"r": stood}).next({}).standings == {"r": Standing(restarts=(0, 0, 2))}


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_generators_are_seeded_before_every_attempt() -> None:
    found: list[tuple[float, float, float]] = []

    def train(attempt: Attempt) -> None:
        found.append(draws())
        if attempt.number < 4:
            raise restart({"seed": 1} if attempt.number == 2 else {})

    supervise(train, attempts=4, seed=5)
    first, second, third, fourth = found
    assert first == second
    assert third == fourth
    assert all(one != other for one, other in zip(first, third, strict=True))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert first == draws()


@pytest.mark.parametrize("seed", [0, 2**32 + 1, 2**63 - 1])
def test_any_seed_will_do(seed: int) -> None:
    assert len(set(supervise(lambda _: draws(), seed=seed))) == 3


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_when_the_attempts_are_used_up_the_last_request_is_raised(attempts: int) -> None:
    seen: list[Attempt] = []
    asked: list[Remedy] = [{"lr": 0.1 * (i + 1)} for i in range(9)]
    with pytest.raises(RestartRequested) as raised:
        supervise(failing(asked, seen), attempts=attempts)
    assert len(seen) == attempts
    assert raised.value.remedy == asked[attempts - 1]


@pytest.mark.parametrize("attempts", [0, -1])
def test_no_attempts_is_an_error_and_nothing_is_tried(attempts: int) -> None:
    seen: list[Attempt] = []
    with pytest.raises(StepguardError, match=f"attempts: expected a whole number from 1, got {attempts}"):
        supervise(failing([], seen), attempts=attempts)
    assert seen == []


@pytest.mark.parametrize(
    "end", [TrainingHalted("enough", step=1, rule="r"), ValueError("bug"), KeyboardInterrupt(), SystemExit(3)]
)
def test_what_is_no_restart_is_raised_at_once(end: BaseException) -> None:
    seen: list[Attempt] = []

    def train(attempt: Attempt) -> None:
        seen.append(attempt)
        raise end

    with pytest.raises(type(end)) as raised:
        supervise(train, attempts=5)
    assert raised.value is end
    assert len(seen) == 1


def test_the_attempt_is_known_inside_and_only_there() -> None:
    def train(attempt: Attempt) -> None:
        assert current_attempt() is attempt
        raise TrainingHalted("enough", step=1, rule="r")

    assert current_attempt() is None
    with pytest.raises(TrainingHalted):
        supervise(train)
    assert current_attempt() is None
    supervise(lambda _: None)
    assert current_attempt() is None
    with pytest.raises(RestartRequested):
        supervise(failing([{}, {}], []), attempts=1)
    assert current_attempt() is None


def test_a_supervised_training_inside_another_has_attempts_of_its_own() -> None:
    inner: list[Attempt] = []

    def outer(attempt: Attempt) -> int:
        assert supervise(failing([{"lr": 0.5}], inner), attempts=2) == "well"
        assert current_attempt() is attempt
        return attempt.number

    assert supervise(outer) == 1
    assert [attempt.number for attempt in inner] == [1, 2]
    assert [attempt.lr_scale for attempt in inner] == [1.0, 0.5]


def test_a_request_of_the_inner_training_that_nobody_serves_reaches_the_outer_one() -> None:
    numbers: list[int] = []

    def outer(attempt: Attempt) -> str:
        numbers.append(attempt.number)
        if attempt.number == 1:
            supervise(failing([{"lr": 0.5}], []), attempts=1)
        return "well"

    assert supervise(outer) == "well"
    assert numbers == [1, 2]


class Guard:
    """What an attempt needs of a guard."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def close(self, outcome: str = "completed") -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (None, "completed"),
        (ValueError("bug"), "error: ValueError: bug"),
        (KeyboardInterrupt(), "error: KeyboardInterrupt: "),
        (restart(), "restart: r"),
    ],
)
def test_guards_left_open_are_closed_with_the_attempt(end: BaseException | None, outcome: str) -> None:
    guards = [Guard(), Guard()]

    def train(attempt: Attempt) -> None:
        attempt.guards += guards
        if end is not None:
            raise end

    if end is None:
        supervise(train, attempts=1)
    else:
        with pytest.raises(type(end)):
            supervise(train, attempts=1)
    assert [guard.outcomes for guard in guards] == [[outcome]] * 2


def test_guards_left_open_by_a_restart_are_closed_before_the_next_attempt() -> None:
    first = Guard()

    def train(attempt: Attempt) -> None:
        if attempt.number == 1:
            attempt.guards.append(first)
            raise restart()
        assert first.outcomes == ["restart: r"]
        assert attempt.guards == []

    with pytest.warns(StepguardWarning, match="attempt 2 ended without a guard"):
        supervise(train)
