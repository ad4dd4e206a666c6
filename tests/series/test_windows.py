"""Every window function, streamed step by step, against its plain definition on the whole array."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stepguard.series import windows
from stepguard.series.detectors import crash
from stepguard.series.history import History, Window

LAYERS = 4
Plain = Callable[[np.ndarray, np.ndarray, int, int], float]


def inside(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> np.ndarray:
    return x[(steps > now - n) & (steps <= now)]


def at(steps: np.ndarray, x: np.ndarray, now: int) -> float:
    return float(x[steps == now][0]) if now in steps else np.nan


def is_full(steps: np.ndarray, now: int, n: int) -> bool:
    return len(steps) > 0 and bool(steps[0] <= now - n + 1)


def over(statistic: Callable[[np.ndarray], float], least: int = 1) -> Plain:
    """A statistic of the readings of the window, where it is full and has `least` of them."""

    def plain(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
        readings = inside(steps, x, now, n)
        return statistic(readings) if is_full(steps, now, n) and len(readings) >= least else np.nan

    return plain


def prev(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    old = x[(steps <= now - n) & (steps > now - 2 * n - 100)]
    return old[-1] if len(old) else np.nan


def delta(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    return at(steps, x, now) - prev(steps, x, now, n)


def growth(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    before, current = prev(steps, x, now, n), at(steps, x, now)
    return current / before if before > 0 and current >= 0 else np.nan


def ewma(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    recent = steps > now - 4 * n
    weights = (1 - 2 / (n + 1)) ** (now - steps[recent])
    if not is_full(steps, now, n) or not weights.sum() > 0:
        return np.nan
    return float(np.average(x[recent], weights=weights))


def few(n: int, most: int) -> np.ndarray:
    return np.arange(n) if n <= most else np.arange(most) * (n - 1) // (most - 1)


def slope(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    y, t = inside(steps, x, now, n), inside(steps, steps, now, n)
    if not is_full(steps, now, n) or len(y) < 2:
        return np.nan
    rows = few(len(y), windows.SLOPE_READINGS)
    return stats.theilslopes(y[rows], t[rows]).slope


def trend(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    y = inside(steps, x, now, n)
    y = y[few(len(y), windows.TREND_READINGS)]
    k = len(y)
    if not is_full(steps, now, n) or k < 3:
        return np.nan
    score = sum(np.sign(b - a) for i, a in enumerate(y) for b in y[i + 1 :])
    if score == 0:
        return 0.0
    groups = np.unique(y, return_counts=True)[1]
    variance = (k * (k - 1) * (2 * k + 5) - sum(t * (t - 1) * (2 * t + 5) for t in groups)) / 18
    return (score - np.sign(score)) / np.sqrt(variance)


def zscore(steps: np.ndarray, x: np.ndarray, now: int, n: int) -> float:
    before = inside(steps, x, now - 1, n)
    if not is_full(steps, now - 1, n) or len(before) < 8:
        return np.nan
    spread = stats.median_abs_deviation(before, scale="normal")
    spread = spread or np.max(np.abs(before - np.median(before))) / 3
    spread = max(spread, 2**-20 * abs(np.median(before))) if spread > 0 else np.nan
    return (at(steps, x, now) - np.median(before)) / spread


PLAIN: dict[str, Plain] = {
    "prev": prev,
    "delta": delta,
    "growth": growth,
    "mean": over(np.mean),
    "median": over(np.median),
    "min": over(np.min),
    "max": over(np.max),
    "std": over(np.std, 2),
    "mad": over(stats.median_abs_deviation, 2),
    "ewma": ewma,
    "slope": slope,
    "trend": trend,
    "zscore": zscore,
}


def expected(name: str, steps: np.ndarray, rows: np.ndarray, now: int, n: int) -> np.ndarray:
    past = steps <= now
    there = [past & ~np.isnan(column) for column in rows.T]
    return np.array([PLAIN[name](steps[k], x[k], now, n) for k, x in zip(there, rows.T, strict=True)])


def streamed(name: str, history: History, now: int, n: int) -> np.ndarray:
    window = history.window("x", now, windows.REACH[name](n))
    result = getattr(windows, name)(window, now, n)
    assert result.shape == window.first.shape and result.dtype == np.float64
    return result


def reserved(n: int, layers: int = LAYERS) -> History:
    history = History()
    history.reserve("x", max(reach(n) for reach in windows.REACH.values()), (layers,))
    return history


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Readings every step, every tenth, or at mixed steps, with gaps a layer and values that repeat."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    count = draw(st.sampled_from([1, 3, 20, 45, 70]))
    gaps = {"one": 1, "ten": 10, "mixed": random.choice([1, 2, 10, 40, 150], count)}[
        draw(st.sampled_from(["one", "ten", "mixed"]))
    ]
    steps = np.cumsum(np.broadcast_to(gaps, count))
    rows = random.normal(draw(st.sampled_from([0.0, 3.0])), 1, (count, LAYERS))
    if draw(st.booleans()):
        rows = np.round(rows)
    rows[random.random(rows.shape) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = np.nan
    return steps, rows


LENGTH = st.sampled_from([1, 2, 5, 12, 30, 60])


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=100, deadline=None)
@given(recordings(), LENGTH)
def test_streamed_as_defined(name: str, recording: tuple[np.ndarray, np.ndarray], n: int):
    steps, rows = recording
    history = reserved(n)
    for k, (step, row) in enumerate(zip(steps.tolist(), rows, strict=True)):
        history.push("x", step, row)
        if k % 5 and k < len(steps) - 3:
            continue
        for now in (step, step + 1):
            np.testing.assert_allclose(
                streamed(name, history, now, n),
                expected(name, steps[: k + 1], rows[: k + 1], now, n),
                rtol=1e-9,
                atol=1e-15 if name == "ewma" else 0,  # weights that cancel leave the rounding of the readings
            )


@settings(max_examples=60, deadline=None)
@given(recordings(), LENGTH, st.integers(0, 60))
def test_after_rewind_and_restart_as_if_never_gone_on(
    recording: tuple[np.ndarray, np.ndarray], n: int, back: int
):
    """A rewind by up to n steps and a reload leave every verdict as it was at that step."""
    steps, rows = recording
    history = reserved(n)
    for step, row in zip(steps.tolist(), rows, strict=True):
        history.push("x", step, row)
    now = int(steps[-1]) - min(back, n)
    history.rewind(now)
    resumed = reserved(n)
    resumed.load_state_dict(pickle.loads(pickle.dumps(history.state_dict())))
    kept = steps <= now
    for name in PLAIN:
        plain = expected(name, steps[kept], rows[kept], now, n)
        np.testing.assert_allclose(streamed(name, history, now, n), plain, rtol=1e-9)
        np.testing.assert_array_equal(streamed(name, resumed, now, n), streamed(name, history, now, n))


@settings(max_examples=60, deadline=None)
@given(recordings(), LENGTH)
def test_layers_do_not_touch_each_other(recording: tuple[np.ndarray, np.ndarray], n: int):
    """A run signal gives what the same readings give as one layer of many."""
    steps, rows = recording
    together, alone = reserved(n), History()
    alone.reserve("x", max(reach(n) for reach in windows.REACH.values()), ())
    for step, row in zip(steps.tolist(), rows, strict=True):
        together.push("x", step, row)
        alone.push("x", step, row[0])
    for name in PLAIN:
        np.testing.assert_allclose(
            streamed(name, alone, step, n), streamed(name, together, step, n)[0], rtol=1e-12
        )


def series(*values: float, start: int = 1) -> Window:
    """One layer, a reading a step."""
    steps = np.arange(start, start + len(values))
    return Window(steps, np.array(values)[:, np.newaxis], np.array([float(start)]))


def test_zscore_of_the_logarithm():
    noise = np.random.default_rng(0).lognormal(0, 0.5, 50)
    x, log = series(0.0, *noise), series(np.nan, *np.log(noise))
    assert windows.zscore(x, 51, 50, log=True) == pytest.approx(windows.zscore(log, 51, 50))
    assert np.isnan(windows.zscore(series(*noise, 0.0), 51, 50, log=True))


def test_zscore_needs_evidence_of_a_spread():
    assert np.isnan(windows.zscore(series(*[1.0] * 20, 100.0), 21, 20))


def test_zscore_of_what_hardly_ever_moves_asks_for_more_than_was_seen():
    before = [0.0] * 15 + [1.0, 2.0] * 2
    assert windows.zscore(series(*before, 2.0), 20, 19) == pytest.approx(3.0)


def test_zscore_does_not_take_rounding_for_noise():
    level = np.float32(3.7) * (1 + np.float32(1e-7) * np.arange(-10, 10).astype(np.float32))
    assert abs(windows.zscore(series(*level, 3.70001), 21, 20)) < 4


def test_growth_from_nothing_is_no_growth():
    for before, after in ((0.0, 1.0), (-1.0, 2.0), (1.0, -1.0)):
        assert np.isnan(windows.growth(series(before, after), 2, 1))


def test_prev_lets_sparse_readings_pass_and_stale_ones_not():
    x = Window(np.array([10]), np.array([[5.0]]), np.array([10.0]))
    assert windows.prev(x, 60, 1) == 5.0
    assert np.isnan(windows.prev(x, 112, 1))


@pytest.mark.parametrize(
    ("truths", "expected_truth"),
    [
        ([1, 1, 1], 1.0),  # enough, young or not
        ([0, 0, 1], np.nan),  # young: what came before might have been true
        ([0, 0, 0, 0, 0, 1], 0.0),
        ([1, 1, 0, 0, 0, 1], 0.0),  # the first lies outside of the last five
        ([0, 1, 0, 0, 1, 1], 1.0),
        ([0, 1, np.nan, np.nan, np.nan, 1], 0.0),  # unknown does not count
        ([], np.nan),
    ],
)
def test_held(truths: list[float], expected_truth: float):
    assert_equal = np.testing.assert_array_equal
    assert_equal(windows.held(series(*truths), len(truths), 3, 5), [expected_truth])


def test_held_counts_steps_not_readings():
    x = Window(np.array([1, 11, 21]), np.ones((3, 1)), np.array([1.0]))
    assert windows.held(x, 21, 3, 21) == 1.0
    assert windows.held(x, 21, 3, 20) == 0.0


def fastest(act: Callable[[], object]) -> float:
    times = []
    for _ in range(15):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return min(times)


def test_a_thousand_layers_are_as_fast_as_numpy():
    """Generous: a median over 100 steps takes a quarter of what numpy takes, a crash of a calm std less."""
    x = Window(np.arange(100), np.random.default_rng(0).normal(size=(100, 1000)), np.zeros(1000))
    numpy_takes = fastest(lambda: np.median(x.values, axis=0))
    assert fastest(lambda: windows.median(x, 99, 100)) < numpy_takes
    assert fastest(lambda: windows.zscore(x, 99, 99)) < 3 * numpy_takes
    calm = x._replace(values=np.exp(x.values / 10))
    assert fastest(lambda: crash(calm, 99, rise=3, fall=3, within=60)) < numpy_takes / 3
