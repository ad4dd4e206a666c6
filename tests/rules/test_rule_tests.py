from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepguard.engine import Engine
from stepguard.errors import RuleFileError
from stepguard.rules.diff import WIDTH, diff, sparkline
from stepguard.rules.packs import load_rules
from stepguard.rules.testing import Alert, Outcome, run_file
from stepguard.signals import Frame

RULES = """
version: 1
rules:
  - {name: high, when: loss > 5, for: 2}
  - {name: thin, when: act.std < 0.1, layers: {type: Linear}}
  - {name: many, when: share(act.std > 3) >= 0.5, active: ..50%}
"""
TESTS = """
rules: rules.yaml
layers: [{name: fc1, type: Linear}, {name: fc2, type: Linear}]
tests:
  - name: each layer has its own alert
    series:
      act.std: {fc1: 1 0.01x3, fc2: 1 _ 1 0.01}
    alerts: [{rule: thin, layer: fc1, step: 1}, {rule: thin, layer: fc2, step: 3}]
  - name: an alert that comes back is another alert
    series: {loss: 9x2 1 9x2}
    alerts: [{rule: high, step: 1}, {rule: high, step: 5}]
  - name: nothing happens
    series: {loss: nan 9 inf _ 1, act.std: 1x9}
    alerts: [{rule: high, step: 2}]
  - name: one series for all layers, and a length
    total_steps: 4
    series: {act.std: 4x1}
    alerts: [{rule: many, step: 0}]
  - name: layers of its own
    layers: [{name: conv, type: Conv2d}]
    series: {act.std: {conv: 0.01x3}}
    alerts: []
"""


def write(folder: Path, tests: str, rules: str = RULES) -> Path:
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    path = folder / "tests.yaml"
    path.write_text(tests, encoding="utf-8")
    return path


def outcomes(folder: Path, tests: str, rules: str = RULES) -> tuple[Outcome, ...]:
    return run_file(write(folder, tests, rules), Engine)


def one(folder: Path, series: str, alerts: str, more: str = "") -> Outcome:
    head = "rules: rules.yaml\nlayers: [{name: fc1, type: Linear}, {name: fc2, type: Linear}]\n"
    (outcome,) = outcomes(
        folder, f"{head}tests:\n- name: it\n  series: {{{series}}}\n  alerts: [{alerts}]\n{more}"
    )
    return outcome


def test_tests_that_pass(tmp_path: Path) -> None:
    found = outcomes(tmp_path, TESTS)
    assert len(found) == 5
    assert [diff(outcome) for outcome in found if not outcome.passed] == []


def test_an_unexpected_alert_fails(tmp_path: Path) -> None:
    outcome = one(tmp_path, "loss: 9x5", "")
    assert not outcome.passed
    assert outcome.unexpected == {Alert("high", None, 1)}


def test_an_alert_at_another_step_or_layer_fails(tmp_path: Path) -> None:
    assert not one(tmp_path, "loss: 9x5", "{rule: high, step: 2}").passed
    assert not one(tmp_path, "act.std: {fc1: 0.01}", "{rule: thin, layer: fc2, step: 0}").passed
    assert one(tmp_path, "act.std: {fc1: 0.01}", "{rule: thin, layer: fc1, step: 0}").passed


def test_a_rule_that_fails_while_it_runs_fails_the_test(tmp_path: Path) -> None:
    class Shorter(Engine):
        """An engine that was promised one layer less."""

        def evaluate(self, frame: Frame) -> list[object]:  # type: ignore[override]
            frame.vectors = {
                name: vector._replace(values=vector.values[:1]) for name, vector in frame.vectors.items()
            }
            return super().evaluate(frame)  # type: ignore[return-value]

    path = write(tmp_path, TESTS.split("  - name: an alert", maxsplit=1)[0])
    (outcome,) = run_file(path, Shorter)  # type: ignore[arg-type]
    assert not outcome.passed
    assert {rule for rule, _ in outcome.failures} == {"thin"}  # "many" sleeps
    assert "rule 'thin' failed: ValueError: act.std has the shape (1,), expected (2,)" in diff(outcome)


def test_the_difference_as_a_person_reads_it(tmp_path: Path) -> None:
    alerts = "{rule: high, step: 3}, {rule: many, step: 2}"
    outcome = one(tmp_path, "loss: 1+1x9, act.std: {fc1: 1x9, fc2: 1-0.125x12}", alerts)
    assert diff(outcome).replace(str(tmp_path), "") == (
        "/tests.yaml:4:3: it\n"
        "  high: expected at step 3, fired at step 6\n"
        "  many: expected at step 2, did not fire\n"
        "  thin at fc2: fired at step 8, not expected\n"
        "    ▁▁▂▃▄▄▅▆▇█  loss: 1 to 10, steps 0 to 9\n"
        "    ▁▁▁▁▁▁▁▁▁▁  act.std at fc1: 1 to 1, steps 0 to 9\n"
        "    █▇▆▆▅▅▄▃▃▂▂▁▁  act.std at fc2: -0.5 to 1, steps 0 to 12"
    )


def test_a_long_series_is_drawn_with_its_peaks() -> None:
    series: list[float | None] = [0.0] * 1_000
    series[321] = 5.0
    line = sparkline(series)
    assert len(line) == WIDTH
    assert line.count("█") == 1


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ("rules: nothing.yaml\ntests: []", "nothing.yaml:1:1: no such file"),
        ("rules: rules.yaml", "1:1: tests is missing: a file of rule tests needs it"),
        ("rules: rules.yaml\ntests: [{name: a, series: {}}]", "2:9: alerts is missing: a test needs it"),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {los: 1}, alerts: []}]",
            "2:28: an unknown signal (got 'los'; did you mean 'loss'?)",
        ),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {loss: 1 2 x}, alerts: []}]",
            "2:38: a series (expected 0.1, 0.1+0.05x20, 2*4x5, _ or nan, got 'x')",
        ),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {loss: {a: 1}}, alerts: []}]",
            "2:34: loss (expected a series such as 0.1 0.1+0.05x20 _, got a mapping)",
        ),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {act.std: {a: 1}}, alerts: []}]",
            "an unknown layer (got 'a')",
        ),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {loss: 1}, alerts: [{rule: hihg, step: 1}]}]",
            "2:54: an unknown rule (got 'hihg'; did you mean 'high'?)",
        ),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {loss: 1}, "
            "alerts: [{rule: high, step: 1, layer: x}]}]",
            "2:76: an unknown layer (got 'x')",
        ),
        (
            "rules: rules.yaml\ntests: [{name: a, series: {loss: 1}, alerts: [{rule: high, step: -1}]}]",
            "2:66: step (expected a whole number of 0 or more, got '-1')",
        ),
        ("", "1:1: an empty file"),
        ("rules: [\n", "not YAML"),
    ],
)
def test_faults_of_a_file_of_tests(tests: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(RuleFileError) as caught:
        outcomes(tmp_path, tests)
    assert len(caught.value.problems) == 1
    assert expected in str(caught.value)


def test_faults_of_the_rules_are_those_of_the_test(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match="an unknown signal"):
        outcomes(tmp_path, TESTS, RULES.replace("loss", "los"))


def test_rules_can_be_packs(tmp_path: Path) -> None:
    path = write(tmp_path, "rules: [default, rules.yaml]\ntests: [{name: a, series: {loss: 1}, alerts: []}]")
    (outcome,) = run_file(path, Engine)
    assert len(outcome.test.rules.rules) == len(load_rules("default").rules) + 3


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 700), text=st.text(max_size=4), cut=st.integers(0, 4))
def test_no_damage_to_a_file_makes_it_fail(place: int, text: str, cut: int, tmp_path: Path) -> None:
    path = write(tmp_path, TESTS[:place] + text + TESTS[place + cut :])
    try:
        run_file(path, Engine)
    except RuleFileError as error:
        assert error.problems
