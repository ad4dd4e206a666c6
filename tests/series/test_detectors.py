from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.series import detectors, windows
from stepguard.series.detectors import Detection
from stepguard.series.history import History, Window

N = 60
DETECTORS: dict[str, Callable[[Window, int], Detection]] = {
    "crash": lambda x, step: detectors.crash(x, step, rise=3, fall=3, within=N),
    "spike": lambda x, step: detectors.spike(x, step, N, 2),
    "drift": lambda x, step: detectors.drift(x, step, N, 1.2),
    "plateau": lambda x, step: detectors.plateau(x, step, N, 0.1),
}
UPWARD = ["crash", "spike", "drift"]
each = pytest.mark.parametrize("name", DETECTORS)


def series(values: np.ndarray) -> Window:
    """A reading a step from step 0, of shape (steps, layers)."""
    return Window(np.arange(len(values)), values, np.zeros(values.shape[1:]))


def column(values: object) -> np.ndarray:
    return np.reshape(np.asarray(values, float), (-1, 1))


def fires(name: str, values: np.ndarray) -> np.ndarray:
    """The steps at which it holds, shape (steps, layers), as the values come in one by one."""
    history = History()
    history.reserve("x", windows.REACH[name](N), values.shape[1:])
    held = []
    for step, row in enumerate(values):
        history.push("x", step, row)
        found = DETECTORS[name](history.window("x", step, windows.REACH[name](N)), step)
        assert not np.any(found.holds & ~found.known)
        held.append(found.holds)
    return np.array(held)


def noise(kind: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "t3":
        return random.standard_t(3, shape)
    x = random.normal(size=shape)
    for step in range(1, len(x)) if kind == "ar" else ():
        x[step] = 0.9 * x[step - 1] + 0.19**0.5 * x[step]
    return x


# crash


def plain_crash(values: np.ndarray, rise: float, fall: float, whole: bool, young: float) -> bool:
    """As its docstring says it, pair by pair."""
    x = values[~np.isnan(values)]
    clear, spreads = 1.0, 9.0 if whole else young
    if spreads and len(x) > 2 and min(x) > 0:
        bends = np.abs(np.diff(np.log(x), n=2))
        clear = np.exp(spreads * 1.482602218505602 * np.median(bends) / 6**0.5)
    for later in range(1, len(x)):
        peak, before = min(x[later - 1], x[later]), sorted(v for v in x[:later] if v > 0)
        trough = before[whole] if len(before) > whole else np.inf
        if peak >= max(rise, clear) * trough and peak >= max(fall, clear) * values[-1]:
            return True
    return False


READING = st.sampled_from([0.0, 1e-9, 0.5, 1.0, 2.0, 3.0, 7.0, np.nan]) | st.floats(0.1, 50)


@settings(max_examples=300)
@given(
    st.lists(st.lists(READING, min_size=2, max_size=2), min_size=1, max_size=12),
    st.sampled_from([1.5, 3.0, 6.0]),
    st.sampled_from([1.5, 3.0]),
    st.integers(1, 12),
    st.sampled_from([0.0, 4.0]),
)
def test_crash_as_defined(rows: list[list[float]], rise: float, fall: float, within: int, young: float):
    values = np.array(rows)
    x = series(values)
    got = detectors.crash(x, len(values) - 1, rise=rise, fall=fall, within=within, young=young)
    full = x.full(len(values) - 1, within)
    known = ~np.isnan(values[-1])
    each_layer = zip(values[-within:].T, full, strict=True)
    expected = [plain_crash(column, rise, fall, bool(whole), young) for column, whole in each_layer] & known
    np.testing.assert_array_equal(got.holds, expected)
    np.testing.assert_array_equal(got.known, known)


def test_crash_of_the_lecture():
    """std climbs over some steps, then falls to almost nothing; one layer does, its neighbour only climbs."""
    climb = np.geomspace(0.2, 4.0, 12)
    values = np.stack([np.append(climb, [4.0, 0.1]), np.append(climb, [5.0, 6.0])], axis=1)
    found = detectors.crash(series(values), 13, rise=3, fall=3, within=60)
    assert found.holds.tolist() == [True, False]
    assert {name: measure[0] for name, measure in found.measures.items()} == pytest.approx(
        {"rise": 20.0, "fall": 40.0, "peak": 4.0}
    )
    assert not fires("crash", values)[:13].any()


def test_crash_to_exactly_nothing():
    found = detectors.crash(series(column([1, 5, 5, 0])), 3, rise=3, fall=3, within=60)
    assert found.holds and np.isinf(found.measures["fall"])


def test_one_high_reading_is_no_peak():
    values = series(column([1, 1, 50, 1, 1]))
    assert not any(detectors.crash(values, now, rise=3, fall=3, within=60).holds for now in range(5))


def test_one_low_reading_is_no_trough_but_in_a_young_window():
    values = column([1, 1, 0.01, *[1] * 9, 0.3])
    assert detectors.crash(series(values), 12, rise=3, fall=3, within=60).holds
    assert not detectors.crash(series(values), 12, rise=3, fall=3, within=13).holds


@pytest.mark.parametrize(("jitter", "holds"), [(0.0, True), (0.02, True), (0.6, False)])
def test_crash_stands_out_from_the_noise_of_a_full_window(jitter: float, holds: bool):
    """A twelvefold climb in ten steps and a fall to a fifth, after fifty steps of noise."""
    level = np.append(np.full(50, 0.1), np.geomspace(0.1, 1.2, 10))
    values = np.append(
        column(level) * np.exp(jitter * noise("normal", (60, 50))), np.full((1, 50), 0.2), axis=0
    )
    found = detectors.crash(series(values), 60, rise=3, fall=3, within=60)
    assert (found.holds == holds).mean() >= 0.9


def test_crash_is_not_a_blip_from_nothing():
    found = detectors.crash(series(column([0, 0, 1e-8, 0])), 3, rise=3, fall=3, within=60)
    assert found.known and not found.holds and np.isnan(found.measures["rise"])


# what holds for all of them


@each
@pytest.mark.parametrize("shape", [(), (0,), (3,)])
def test_nothing_is_known_without_readings(name: str, shape: tuple[int, ...]):
    empty = Window(np.empty(0, np.int64), np.empty((0, *shape)), np.full(shape, np.inf))
    found = DETECTORS[name](empty, 5)
    assert found.holds.shape == found.known.shape == shape and not found.known.any()
    assert all(measure.shape == shape for measure in found.measures.values())


@each
def test_unknown_while_the_window_is_short(name: str):
    values = np.exp(noise("normal", (N, 3)) / 10)
    assert DETECTORS[name](series(values), N - 1).known.all() == (name != "spike")
    assert DETECTORS[name](series(values[:-1]), N - 2).known.all() == (name == "crash")


@pytest.mark.parametrize("name", ["crash", "spike"])
def test_unknown_without_a_reading_now(name: str):
    values = np.exp(noise("normal", (N + 2, 2)) / 10)
    values[-1, 0] = np.nan
    assert DETECTORS[name](series(values), N + 1).known.tolist() == [False, True]


@each
def test_layers_do_not_touch_each_other(name: str):
    random = np.random.default_rng(1)
    values = np.exp(np.cumsum(random.normal(0, 0.3, (N + 1, 40)), axis=0))
    values[random.random(values.shape) < 0.2] = np.nan
    values[:, ::7] -= 3
    together = DETECTORS[name](series(values), N)
    for layer in range(values.shape[1]):
        alone = DETECTORS[name](series(values[:, layer]), N)
        assert alone.holds.shape == ()
        assert alone.holds == together.holds[layer] and alone.known == together.known[layer]
        for measure, value in alone.measures.items():
            np.testing.assert_allclose(value, together.measures[measure][layer], rtol=1e-12)


@pytest.mark.parametrize("name", UPWARD)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_falling_series_fires_nothing_upwards(name: str, data: st.DataObject):
    """Whatever its shape, above and below 0, and with steps in it."""
    falls = data.draw(st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.01, 0.5, 20.0]), min_size=90, max_size=90))
    start = data.draw(st.sampled_from([0.0, 3.0, 1e3]))
    straight = start - np.cumsum(falls)
    assert not fires(name, np.stack([straight, np.exp(straight / 100)], axis=1)).any()


@pytest.mark.parametrize("name", ["spike", "drift"])
@pytest.mark.parametrize(("kind", "often"), [("normal", 0), ("t3", 2e-4), ("ar", 5e-4)])
def test_a_noisy_loss_that_falls_fires_nothing_upwards(name: str, kind: str, often: float):
    steps = np.arange(300.0)
    shapes = (2.3 / (1 + steps / 20), np.exp(-steps / 60), 0.2 + np.exp(-steps / 20), 1 - steps / 400)
    losses = np.concatenate([column(loss) * np.exp(0.1 * noise(kind, (300, 30))) for loss in shapes], axis=1)
    assert np.mean(fires(name, losses)) <= often


@pytest.mark.parametrize("name", ["spike", "drift"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0])
def test_tiny_numbers_do_not_fire_by_being_tiny(name: str, scale: float):
    """Noise around 0, noise of many magnitudes, exact zeros with a blip, the rounding of a constant."""
    random = np.random.default_rng(3)
    wild = np.exp(3 * random.normal(size=(400, 20)))
    around = random.normal(size=(400, 20))
    often = np.linspace(0.01, 0.4, 20)
    mostly_zero = random.binomial(1, often, (400, 20)) * random.random((400, 20))
    constant = (1 + np.float32(1e-7) * random.integers(-2, 3, (400, 20))).astype(np.float32)
    for values in (wild, around, mostly_zero, constant):
        assert not fires(name, scale * values).any()


@pytest.mark.parametrize("name", ["crash", "spike", "drift", "plateau"])
@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0**-60, 2.0**-3, 2.0**40]))
def test_the_unit_does_not_matter(name: str, seed: int, unit: float):
    values = np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.2, (N + 1, 20)), axis=0))
    one, other = DETECTORS[name](series(values), N), DETECTORS[name](series(values * unit), N)
    np.testing.assert_array_equal(one.holds, other.holds)


# spike


@pytest.mark.parametrize("kind", ["normal", "t3", "ar"])
def test_growth_of_four_times_a_step_is_seen_at_its_second_step(kind: str):
    values = np.exp(0.1 * noise(kind, (N + 40, 200)))
    values[-2:] *= [[4.0], [16.0]]
    held = fires("spike", values)
    assert np.mean(held[-2:].any(axis=0)) >= 0.99
    assert not held[:-2].any()


def test_a_jump_of_a_falling_loss_is_seen():
    loss = column(np.exp(-np.arange(N + 2) / 30)) * np.exp(0.02 * noise("normal", (N + 2, 50)))
    loss[-2:] *= 10
    assert fires("spike", loss)[-1].all()


def test_spike_measures():
    before = [1.8, 2.2] * 40
    once, twice = column([*before, 8.0]), column([*before, 8.0, 8.0])
    assert not detectors.spike(series(once), 80, N, 3).holds  # far, but not far enough for once
    found = detectors.spike(series(twice), 81, N, 3)
    assert found.holds
    assert found.measures == {"ratio": pytest.approx(8 / 2.2), "baseline": pytest.approx(2.2)}
    assert not detectors.spike(series(twice), 81, N, 4).holds


def test_a_constant_that_jumps_is_a_spike_and_nothing_that_jumps_is_not():
    values = np.array([[1.0, 0.0]] * (N + 1) + [[8.0, 8.0]])
    found = detectors.spike(series(values), N + 1, N, 5)
    assert found.holds.tolist() == [True, False] and found.known.tolist() == [True, False]


def test_spike_of_what_crosses_zero_counts_in_spreads():
    values = noise("normal", (N + 2, 1))
    values[-2:] = 50.0
    found = detectors.spike(series(values), N + 1, N, 10)
    assert found.holds and 30 < found.measures["ratio"] < 80


def test_spike_at_every_tenth_step():
    """Seen at the second reading of the growth, with a window of as many steps."""
    values = np.exp(0.1 * noise("normal", (20, 100)))
    values[-2:] *= [[4.0], [16.0]]
    x = Window(np.arange(20) * 10, values, np.zeros(100))
    assert detectors.spike(x, 190, 150, 3).holds.mean() >= 0.95


# drift and plateau


@pytest.mark.parametrize("kind", ["step", "ramp"])
def test_drift_is_seen_within_a_window(kind: str):
    steps = np.arange(3 * N)
    log = np.log(2) * (steps >= N if kind == "step" else np.clip((steps - N) / N, 0, None))
    held = fires("drift", np.exp(column(log) + 0.03 * noise("normal", (3 * N, 50))))
    assert not held[:N].any()
    assert held[N : 2 * N].any(axis=0).mean() >= 0.95


def test_drift_measures():
    values = column([2.0] * 42 + [6.0] * 18)
    found = detectors.drift(series(values), N - 1, N, 2.5)
    assert found.holds and found.measures == {"ratio": 3.0, "baseline": pytest.approx(2.0)}
    assert not detectors.drift(series(values), N - 1, N, 3.5).holds


def test_plateau_begins_when_the_fall_ends():
    steps = np.arange(4 * N)
    loss = np.exp(-np.minimum(steps, 2 * N) / N)  # falls to 1/e in a window
    held = fires("plateau", column(loss) * np.exp(0.01 * noise("normal", (4 * N, 50))))
    assert not held[: 2 * N].any()
    assert held[3 * N :].mean() >= 0.95


def test_plateau_stays_silent_where_noise_hides_the_fall():
    held = fires("plateau", np.exp(0.5 * noise("normal", (2 * N, 50))))
    assert held.mean() < 0.05


def test_plateau_measures():
    loss = column(np.linspace(1.1, 0.9, 2 * N))
    found = detectors.plateau(series(loss), 2 * N - 1, 2 * N, 0.3)
    assert found.holds
    assert found.measures == {"fall": pytest.approx(0.2, rel=0.05), "level": pytest.approx(1.0)}
    assert not detectors.plateau(series(loss), 2 * N - 1, 2 * N, 0.15).holds
