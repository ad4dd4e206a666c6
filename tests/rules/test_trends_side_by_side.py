"""Trends of many steps at once against the running form that a training is judged by."""

from __future__ import annotations

import numpy as np
import pytest

from stepguard.rules.side_by_side import Rows, Windows
from stepguard.series.trends import RunningTrend


def live(steps: np.ndarray, values: np.ndarray, now: int, n: int) -> float:
    trend = RunningTrend(n)
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        if step <= now:
            trend.push(step, value)
    return trend.at(now).z() if steps[0] <= now - n + 1 else np.nan


@pytest.mark.parametrize("n", [8, 20, 60, 300])
@pytest.mark.parametrize("kind", ["noise", "rising", "falling", "some alike", "one not finite"])
@pytest.mark.parametrize("gaps", [False, True])
def test_they_are_the_same_to_the_last_bit(n: int, kind: str, gaps: bool) -> None:
    random = np.random.default_rng(n + gaps)
    steps = np.cumsum(random.integers(1, 3, 400) if gaps else np.ones(400, np.int64))
    slope = {"rising": 0.02, "falling": -0.02}.get(kind, 0.0)
    values = random.normal(0, 1, 400) + slope * np.arange(400)
    if kind == "some alike":
        values = values.round(1)
    if kind == "one not finite":
        values[200] = np.inf
    now = np.sort(random.choice(np.arange(steps[0], steps[-1] + 1), 150, replace=False))
    rows = Rows(steps, values, np.array(float(steps[0])), np.arange(len(steps)))
    found = Windows(rows, now, n).trend()
    np.testing.assert_array_equal(found, [live(steps, values, int(at), n) for at in now])
    assert np.isfinite(found).sum() > 20
