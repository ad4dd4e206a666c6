"""The running trend against Mann-Kendall's definition, pair by pair."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.rules.evaluate import Evaluator, Watch
from stepguard.rules.expression import compile_condition
from stepguard.series.trends import RunningTrend
from stepguard.signals import Frame


def plain(values: list[float]) -> float:
    count = len(values)
    score = sum(int(np.sign(late - early)) for early, late in combinations(values, 2))
    if count < 3 or not score:
        return np.nan if count < 3 else 0.0
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    return (score - np.sign(score)) / variance**0.5


READINGS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0.0, 1.0, 2.0, -1.0]) | st.floats(-9, 9)), max_size=60
)


@settings(max_examples=200)
@given(READINGS, st.integers(3, 40), st.integers(0, 50))
def test_it_is_the_definition_at_every_step(readings: list[tuple[int, float]], n: int, silence: int):
    trend, steps, values, step = RunningTrend(n), list[int](), list[float](), 0
    for gap, value in readings:
        step += gap
        trend.push(step, value)
        steps.append(step)
        values.append(value)
        kept = [v for s, v in zip(steps, values, strict=True) if s > step - n]
        assert trend.at(step).z() == pytest.approx(plain(kept), nan_ok=True)
    kept = [v for s, v in zip(steps, values, strict=True) if s > step + silence - n]
    assert trend.at(step + silence).z() == pytest.approx(plain(kept), nan_ok=True)


def test_a_rule_reads_all_of_a_long_window_also_after_a_rewind():
    condition = compile_condition("trend(loss, 90) > 2")
    evaluator = Evaluator([Watch(condition, np.ones(0, np.bool_))], 0)
    losses = np.random.default_rng(3).normal(size=200) + np.arange(200) / 150

    def held(step: int) -> bool:
        evaluator.feed(Frame(step, {"loss": float(losses[step])}), None)
        return bool(evaluator.truth(0).holds)

    expected = [step >= 89 and plain(list(losses[max(step - 89, 0) : step + 1])) > 2 for step in range(200)]
    assert [held(step) for step in range(200)] == expected
    assert any(expected) and not all(expected[89:])
    evaluator.rewind(120)
    assert [held(step) for step in range(121, 200)] == expected[121:]
