"""The goal that `tests/bench/noise.py` measures on large samples, held on small ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import poisson

from bench.noise import CASES, CHANGES, NOISES, Case, delay, false_alarms, noise, positive

STEPS, LAYERS = 100, 60
MOST = 1000 * poisson.ppf(0.999, 0.05 * STEPS * LAYERS / 1000) / (STEPS * LAYERS)
"""What chance makes of 0.05 alarms per 1,000 steps in so small a sample, but once in 1,000 such samples."""

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each
def test_false_alarms_on_five_noises(case: Case):
    random = np.random.default_rng(11)
    fall = np.exp(-case.falls * np.arange(case.reach + STEPS))[:, np.newaxis]
    for kind in NOISES:
        e = noise(kind, (case.reach + STEPS, LAYERS), random)
        assert false_alarms(case, positive(kind, e) * fall) <= 1.01 * MOST, kind
        if case.around_zero and not kind.startswith("log"):
            assert false_alarms(case, e) <= 1.01 * MOST, kind


@pytest.mark.parametrize("case", [c for c in CASES if c.young], ids=lambda case: case.name)
def test_false_alarms_in_a_young_window(case: Case):
    random = np.random.default_rng(12)
    # Ten layers of log-normal noise, each its own, can agree by chance while all is young.
    for kind in NOISES if case.layers == 1 else set(NOISES) - {"log-normal 0.5"}:
        values = positive(kind, noise(kind, (case.reach, LAYERS), random))
        assert false_alarms(case, values, range(case.reach)) <= 1.01 * MOST, kind


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name.startswith(("spike", "z"))], ids=lambda case: case.name
)
@pytest.mark.parametrize("change", ["step x4", "growth x4 a step"])
def test_four_times_is_seen_at_the_second_step(case: Case, change: str):
    assert delay(case, CHANGES[change], np.random.default_rng(5)) == [2, 2]


@pytest.mark.parametrize("case", [c for c in CASES if "crash" in c.name], ids=lambda case: case.name)
def test_a_crash_is_seen_as_it_falls(case: Case):
    (change,) = case.changes.values()
    assert delay(case, change, np.random.default_rng(5)) == [11, 11]
