from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stepguard.rules.alert import FIRING, INACTIVE, PENDING, STATES, AlertStates, advance

TRUE, FALSE, UNKNOWN = 1, 0, None
truths = st.lists(st.sampled_from([TRUE, FALSE, UNKNOWN]), min_size=1, max_size=40)


def run(history: list[int | None], steps: list[int], hold: int, keep: int) -> list[int]:
    states, codes = AlertStates.inactive(()), list[int]()
    for step, truth in zip(steps, history, strict=True):
        states = advance(states, step, np.array(truth == 1), np.array(truth is not None), hold, keep)
        codes.append(int(states.code))
    return codes


def defined(history: list[int | None], steps: list[int], hold: int, keep: int) -> list[int]:
    """The definition, told from the whole history at each step."""
    codes: list[int] = []
    for now in range(len(history)):
        evaluated = [
            (step, truth)
            for step, truth in zip(steps[: now + 1], history[: now + 1], strict=True)
            if truth is not None
        ]
        code = INACTIVE
        for index, (step, truth) in enumerate(evaluated):
            in_a_row = [truth for _, truth in evaluated[max(0, index + 1 - hold) : index + 1]]
            held = [step for step, truth in evaluated[: index + 1] if truth]
            if in_a_row == [1] * hold or (code == FIRING and (truth or step - held[-1] <= keep)):
                code = FIRING
            else:
                code = PENDING if truth else INACTIVE
        codes.append(code)
    return codes


@given(truths, st.data(), st.integers(1, 4), st.integers(0, 5))
def test_an_alert_is_what_its_definition_says(
    history: list[int | None], data: st.DataObject, hold: int, keep: int
) -> None:
    gaps = data.draw(st.lists(st.integers(1, 4), min_size=len(history), max_size=len(history)))
    steps = np.cumsum(gaps).tolist()
    assert run(history, steps, hold, keep) == defined(history, steps, hold, keep)


@given(truths, st.integers(1, 4))
def test_without_keep_it_fires_exactly_when_the_condition_held_long_enough(
    history: list[int | None], hold: int
) -> None:
    codes = run(history, list(range(len(history))), hold, 0)
    in_a_row = 0
    for truth, code in zip(history, codes, strict=True):
        in_a_row = in_a_row if truth is None else in_a_row + 1 if truth else 0
        assert (code == FIRING) == (in_a_row >= hold)


@given(st.lists(truths, min_size=3, max_size=3), st.integers(1, 3), st.integers(0, 3))
def test_layers_move_each_for_itself(histories: list[list[int | None]], hold: int, keep: int) -> None:
    length = min(map(len, histories))
    states = AlertStates.inactive((3,))
    codes = [states.code for _ in range(0)]
    for step in range(length):
        now = [history[step] for history in histories]
        holds = np.array([truth == 1 for truth in now])
        known = np.array([truth is not None for truth in now])
        states = advance(states, step, holds, known, hold, keep)
        codes.append(states.code)
    alone = [run(history[:length], list(range(length)), hold, keep) for history in histories]
    assert np.array(codes).T.tolist() == alone


def test_keep_counts_steps_and_not_evaluations() -> None:
    steps = [0, 1, 4, 9, 14]
    assert run([TRUE, FALSE, FALSE, FALSE, FALSE], steps, 1, 9) == [FIRING, FIRING, FIRING, FIRING, INACTIVE]


def test_an_unknown_step_changes_nothing() -> None:
    history = [UNKNOWN, TRUE, UNKNOWN, TRUE, UNKNOWN, FALSE, UNKNOWN]
    expected = [INACTIVE, PENDING, PENDING, FIRING, FIRING, INACTIVE, INACTIVE]
    assert run(history, list(range(7)), 2, 0) == expected


def test_a_step_that_is_not_known_does_not_count_as_holding() -> None:
    states = advance(AlertStates.inactive(()), 0, np.array(True), np.array(False), 1, 0)
    assert STATES[int(states.code)] == "inactive"


def test_the_states_before_are_left_alone() -> None:
    before = AlertStates.inactive((2,))
    advance(before, 5, np.array([True, False]), np.array([True, True]), 1, 0)
    assert not any(array.any() for array in before)
