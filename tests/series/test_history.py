from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.series.history import History, Window

READING = st.floats(-1e6, 1e6) | st.just(np.nan)
GAPS = st.lists(st.integers(1, 12), min_size=1, max_size=60)
ROOM = st.integers(1, 15)


def record(history: History, steps: list[int], rows: np.ndarray) -> None:
    for step, row in zip(steps, rows, strict=True):
        history.push("x", step, row)


def plain_window(steps: np.ndarray, rows: np.ndarray, now: int, n: int) -> Window:
    """The same from everything that was ever pushed."""
    read = ~np.isnan(rows).all(axis=1)
    inside = read & (steps > now - n) & (steps <= now)
    past = steps <= now
    first = [np.min(steps[past & ~np.isnan(column)].astype(float), initial=np.inf) for column in rows.T]
    return Window(steps[inside], rows[inside], np.array(first))


def assert_same(got: Window, expected: Window) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[int], np.ndarray]:
    steps = np.cumsum(draw(GAPS))
    rows = draw(st.lists(st.lists(READING, min_size=3, max_size=3), min_size=len(steps), max_size=len(steps)))
    return [int(step) for step in steps], np.array(rows)


@given(recordings(), ROOM, st.data())
def test_window_holds_what_was_pushed(
    recording: tuple[list[int], np.ndarray], room: int, data: st.DataObject
):
    steps, rows = recording
    history = History()
    history.reserve("x", room, (3,))
    for k, (step, row) in enumerate(zip(steps, rows, strict=True)):
        history.push("x", step, row)
        n = data.draw(st.integers(1, room))
        seen = plain_window(np.array(steps[: k + 1]), rows[: k + 1], step, n)
        assert_same(history.window("x", step, n), seen)


@given(recordings(), ROOM, st.data())
def test_state_goes_on_as_the_original(
    recording: tuple[list[int], np.ndarray], room: int, data: st.DataObject
):
    steps, rows = recording
    half = data.draw(st.integers(0, len(steps)))
    one, other = History(), History()
    one.reserve("x", room, (3,))
    record(one, steps[:half], rows[:half])
    other.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    back = data.draw(st.integers(0, 30))
    for history in (one, other):
        record(history, steps[half:], rows[half:])
        history.rewind(steps[-1] - back)
    assert_same(one.window("x", steps[-1], room), other.window("x", steps[-1], room))


@settings(max_examples=200)
@given(recordings(), ROOM, st.data())
def test_rewind_leaves_what_was_there_at_that_step(
    recording: tuple[list[int], np.ndarray], room: int, data: st.DataObject
):
    """Or less than that, and then it says that the window is not full."""
    steps, rows = recording
    history = History()
    history.reserve("x", room, (3,))
    record(history, steps, rows)
    back_to = data.draw(st.integers(0, steps[-1]))
    history.rewind(back_to)
    kept = [step for step in steps if step <= back_to]
    for now in range(back_to, back_to + 3):
        got = history.window("x", now, room)
        expected = plain_window(np.array(kept), rows[: len(kept)], now, room)
        full = got.first <= now - room + 1
        assert np.all(got.first >= expected.first)
        if full.any() or steps[-1] - back_to <= room:
            np.testing.assert_array_equal(got.steps, expected.steps)
            np.testing.assert_array_equal(got.values, expected.values)
        if steps[-1] - back_to <= room:
            np.testing.assert_array_equal(full, expected.first <= now - room + 1)


def test_rewind_far_back_begins_anew():
    history = History()
    history.reserve("x", 5, ())
    for step in range(100):
        history.push("x", step, np.array(float(step)))
    history.rewind(40)
    window = history.window("x", 40, 5)
    assert len(window.steps) == 0 and np.isinf(window.first)
    history.push("x", 41, np.array(1.0))
    assert history.window("x", 41, 5).first == 41


def test_readings_that_are_not_finite_are_none():
    history = History()
    history.reserve("x", 5, (3,))
    history.push("x", 1, np.array([np.inf, -np.inf, np.nan]))
    history.push("x", 2, np.array([1.0, np.inf, np.nan]))
    window = history.window("x", 2, 5)
    assert window.steps.tolist() == [2]
    np.testing.assert_array_equal(window.values, [[1.0, np.nan, np.nan]])
    np.testing.assert_array_equal(window.first, [2, np.inf, np.inf])


def test_a_window_stays_as_it_was_handed_out():
    history = History()
    history.reserve("x", 5, (2,))
    history.push("x", 1, np.array([1.0, np.nan]))
    window = history.window("x", 1, 5)
    history.push("x", 2, np.array([2.0, 2.0]))
    assert_same(window, Window(np.array([1]), np.array([[1.0, np.nan]]), np.array([1.0, np.inf])))


def test_largest_reservation_wins_and_keeps_what_is_there():
    history = History()
    for n in (2, 9, 4):
        history.reserve("x", n, ())
        history.push("x", n * 10 if n != 4 else 95, np.array(float(n)))
    assert history.window("x", 95, 9).values.tolist() == [9.0, 4.0]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda h: h.push("y", 9, np.zeros(2)), KeyError, "y"),
        (lambda h: h.window("y", 9, 1), KeyError, "y"),
        (lambda h: h.push("x", 9, np.zeros(3)), ValueError, "x: expected values of shape (2,), got (3,)"),
        (lambda h: h.push("x", 5, np.zeros(2)), ValueError, "x: expected a step after 5, got 5"),
        (lambda h: h.window("x", 5, 8), ValueError, "x: expected at most the 7 steps reserved, got 8"),
    ],
)
def test_misuse_is_told(act, error: type[Exception], message: str):
    history = History()
    history.reserve("x", 7, (2,))
    history.push("x", 5, np.ones(2))
    with pytest.raises(error) as told:
        act(history)
    assert message in str(told.value)


def test_memory_is_constant_in_steps():
    """Twenty signals of 1,000 layers with windows of 100 steps stay below 50 MB, however long the run."""
    history = History()
    history.reserve("x", 100, (1000,))
    sizes = set()
    for step in range(2000):
        history.push("x", step, np.ones(1000))
        sizes.add(sum(a.nbytes for a in vars(history._rings["x"]).values() if isinstance(a, np.ndarray)))
    assert len(sizes) == 1 and 20 * sizes.pop() < 50e6
