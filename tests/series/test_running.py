"""The bounds against what they stand before: they may say "it may hold" too often, and never too seldom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.series import detectors, windows
from stepguard.series.history import History, Window
from stepguard.series.medians import RunningMedian
from stepguard.series.running import (
    BelowBound,
    Bound,
    CrashBound,
    DriftBound,
    HeldBound,
    Largest,
    PlateauBound,
    SpikeBound,
    StretchesBound,
)

LAYERS = 3


def held(x: Window, step: int, n: int) -> np.ndarray:
    return windows.held(x, step, max(1, n // 2), n) == 1.0


RUN: dict[str, tuple[Callable[[int], Bound[float, bool]], Callable[[Window, int, int], np.ndarray]]] = {
    "held": (lambda n: HeldBound(max(1, n // 2), n), held),
    "spike": (lambda n: SpikeBound(n, 1.5), lambda x, step, n: detectors.spike(x, step, n, 1.5).holds),
    "drift": (DriftBound, lambda x, step, n: detectors.drift(x, step, n, 1.1).holds),
    "plateau": (lambda n: PlateauBound(n, 0.1), lambda x, step, n: detectors.plateau(x, step, n, 0.1).holds),
}


def series(seed: int, kind: str) -> tuple[list[int], np.ndarray]:
    """Readings with gaps: of a level that moves, jumps and rests, of truths, of few different numbers."""
    random = np.random.default_rng(seed)
    count = int(random.integers(30, 160))
    gaps = random.choice([1, 2, 10, 90], count, p=random.choice([[1, 0, 0, 0], [0.8, 0.1, 0.08, 0.02]]))
    if kind == "truths":
        return np.cumsum(gaps).tolist(), random.integers(0, 2, count).astype(float)
    moves = random.choice([0.0, 0.003, 0.02]) * random.normal(size=count) + random.choice([-0.01, 0, 0.02])
    moves += random.choice([0, 1.5, -1.5], count, p=[0.97, 0.02, 0.01])
    values = np.exp(np.cumsum(moves)) + random.choice([0.0, -1.0])
    return np.cumsum(gaps).tolist(), np.round(values, 1) if kind == "few" else values


LENGTH = st.sampled_from([8, 19, 20, 33, 60])
KIND = st.sampled_from(["level", "few", "truths"])


def recorded(steps: Sequence[int], rows: np.ndarray, n: int) -> tuple[History, Callable[[int], object]]:
    history = History()
    history.reserve("x", n, rows.shape[1:])
    return history, lambda place: history.push("x", steps[place], rows[place])


@pytest.mark.parametrize("name", RUN)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), KIND, LENGTH)
def test_what_holds_may_hold(name: str, seed: int, kind: str, n: int) -> None:
    steps, values = series(seed, kind)
    make, holds = RUN[name]
    bound = make(n)
    reach = windows.REACH[name](n)
    history, push = recorded(steps, values, reach)
    for place, (step, value) in enumerate(zip(steps, values.tolist(), strict=True)):
        push(place)
        bound.push(step, value)
        nexts = steps[place + 1] if place + 1 < len(steps) else step + 3
        for now in sorted({step, min(step + 1, nexts - 1)}):
            with np.errstate(all="ignore"):
                there = bool(holds(history.window("x", now, reach), now, n))
            assert bound.may_hold(now) >= there
            if name == "held":
                assert bound.may_hold(now) == there


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 30]))
def test_crash(seed: int, within: int) -> None:
    random = np.random.default_rng(seed)
    steps, _ = series(seed, "level")
    rows = random.choice([0.5, 1.0, 2.0, 5.0, 0.0, np.nan], (len(steps), LAYERS))
    bound = CrashBound(2.0, within, LAYERS)
    history, push = recorded(steps, rows, within)
    for place, step in enumerate(steps):
        push(place)
        bound.push(step, rows[place])
        for now in (step, step + 1):
            x = history.window("x", now, within)
            there = detectors.crash(x, now, rise=1.5, fall=2.0, within=within).holds
            assert np.all(bound.may_hold(now) >= there)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 30]))
def test_largest_and_below(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    steps, _ = series(seed, "level")
    rows = random.choice([0.5, 1.0, 2.0, np.nan], (len(steps), LAYERS), p=random.dirichlet(np.ones(4)))
    rows[: random.integers(0, 20), random.integers(0, LAYERS)] = np.nan
    mask = random.random(LAYERS) < 0.7
    largest, below = Largest(n, LAYERS), BelowBound(n, 1.0, mask)
    history, push = recorded(steps, rows, n)
    for place, step in enumerate(steps):
        push(place)
        largest.push(step, rows[place])
        below.push(step, rows[place])
        for now in (step, step + 1, step + n):
            found = windows.max(history.window("x", now, n), now, n)
            assert np.all((largest.get() >= found) | np.isnan(found))
            there = found[mask & ~np.isnan(found)]
            if len(there) and there.max() <= 1.0:
                assert below.may_hold(now)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), KIND, LENGTH)
def test_medians_are_those_of_windows(seed: int, kind: str, n: int) -> None:
    """Bit for bit, where a window is full."""
    steps, values = series(seed, kind)
    running = RunningMedian(n)
    history, push = recorded(steps, values, n)
    for place, (step, value) in enumerate(zip(steps, values.tolist(), strict=True)):
        push(place)
        running.push(step, value)
        nexts = steps[place + 1] if place + 1 < len(steps) else step + 2 * n
        for now in sorted({step, min(step + 1, nexts - 1), nexts - 1}):
            x = history.window("x", now, n)
            if x.first <= now - n + 1:
                found = running.at(now)
                np.testing.assert_array_equal(found.median(), windows.median(x, now, n))
                np.testing.assert_array_equal(found.mad(), windows.mad(x, now, n))


def test_below_says_no_where_a_layer_is_above() -> None:
    bound = BelowBound(10, 5e-6, np.array([False, True]))
    for step in range(20):
        bound.push(step, np.array([0.0, 1e-3]))
    assert [bound.may_hold(step) for step in (19, 28, 29)] == [False, False, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), LENGTH)
def test_stretches_are_those_of_the_detectors(seed: int, n: int) -> None:
    """Bit for bit: so a bound compares the very numbers that the detector compares."""
    steps, values = series(seed, "level")
    bound = StretchesBound(n)
    history, push = recorded(steps, values, n)
    for place, (step, value) in enumerate(zip(steps, values.tolist(), strict=True)):
        push(place)
        bound.push(step, value)
        bound.reach(step)
        expected = detectors.medians(history.window("x", step, n), step, n)
        np.testing.assert_array_equal([bound.stretch(k) for k in range(detectors.BLOCKS)], expected)


@pytest.mark.parametrize(
    ("bound", "calm"),
    [
        (HeldBound(6, 8), 0.0),
        (SpikeBound(100, 20), 1.0),
        (DriftBound(100), 1.0),
        (CrashBound(3, 60, LAYERS), np.ones(LAYERS)),
    ],
)
def test_of_what_is_calm_it_says_that_nothing_holds(bound: Any, calm: Any) -> None:
    for step in range(500):
        bound.push(step, calm)
        assert not np.any(bound.may_hold(step))


def test_of_a_clear_fall_it_says_that_it_is_no_plateau() -> None:
    bound = PlateauBound(100, 0.01)
    noise = np.random.default_rng(0).normal(0, 0.02, 500)
    for step in range(500):
        bound.push(step, 2.3 * 0.99**step + 0.01 * noise[step] * 0.99**step)
        assert not bound.may_hold(step)


def test_a_long_gap_costs_no_more_than_a_window() -> None:
    bound = DriftBound(100)
    for step in (0, 10**12, 2 * 10**12):
        bound.push(step, 1.0)
        assert not bound.may_hold(step)
