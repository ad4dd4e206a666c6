"""The shipped packs keep to their word: no lint, tests for each rule, sources for their thresholds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from stepguard.engine import Engine
from stepguard.rules.expression import ExpressionError, compile_condition
from stepguard.rules.lint import lint
from stepguard.rules.packs import pack_names, pack_path, read_rules
from stepguard.rules.rule import Rule, Ruleset
from stepguard.rules.syntax import parse
from stepguard.rules.testfile import RuleTest, read_tests
from stepguard.rules.testing import run_test

TESTS = Path(__file__).parents[2] / "rules" / "tests"


def own_rules(pack: str) -> list[Rule]:
    path = pack_path(pack)
    return [rule for rule in read_rules(pack).ruleset if rule.place.file == path.name]


def shipped_tests(pack: str) -> tuple[RuleTest, ...]:
    return read_tests(TESTS / f"{pack}.yaml")


def test_the_packs_are_these() -> None:
    assert pack_names() == (
        *("autotrainer", "deepchecker", "default", "lecture"),
        *("mixed-precision", "quiet", "sagemaker", "transformer"),
    )


@pytest.mark.parametrize("pack", pack_names())
def test_nothing_in_a_pack_is_surely_not_meant(pack: str) -> None:
    assert lint(read_rules(pack)) == []
    assert pack_path(pack).read_text().startswith("# ")


@pytest.mark.parametrize("pack", pack_names())
def test_the_tests_of_a_pack_pass(pack: str) -> None:
    for test in shipped_tests(pack):
        outcome = run_test(test, Engine)
        assert outcome.passed, (test.name, outcome.missing, outcome.unexpected, outcome.failures)


def nearly(rule: Rule) -> Iterator[Rule]:
    """The rule asking for a little less: one number of its condition changed, `for` 1, or a part left out."""
    yield replace(rule, hold=1)
    text = " ".join(rule.condition.text.split())
    texts = [text.replace("nonfinite(loss)", "abs(loss) > 1e20")]
    for node in ast.walk(parse(text).body):
        if isinstance(node, ast.Constant):
            value = float(str(node.value))
            others = [value * by for by in (0.25, 0.5, 0.8, 1.25, 2, 4)] if value else [-0.01, 0.01]
            texts += [f"{text[: node.col_offset]}{x:g}{text[node.end_col_offset :]}" for x in others]
    parts = text.split(" and ")
    texts += [" and ".join(parts[:place] + parts[place + 1 :]) for place in range(len(parts))]
    for other in texts:
        with suppress(ExpressionError):
            yield replace(rule, condition=compile_condition(other))


def just_misses(rule: Rule, test: RuleTest) -> bool:
    """Whether the rule fires nowhere in the test, and would have if it had asked for a little less."""
    if rule.name in {alert.rule for alert in test.expected}:
        return False
    if not rule.condition.signals & {*test.run, *test.per_layer}:
        return False
    changed = (replace(test, rules=Ruleset((replace(each, message=""),))) for each in nearly(rule))
    return any(run_test(each, Engine).fired for each in changed)


@pytest.mark.parametrize("pack", pack_names())
def test_each_rule_fires_in_a_test_and_just_misses_in_another(pack: str) -> None:
    tests = shipped_tests(pack)
    for rule in own_rules(pack):
        fires = [at for at, test in enumerate(tests) if rule.name in {alert.rule for alert in test.expected}]
        assert fires, rule.name
        nearest = sorted(range(len(tests)), key=lambda at: min(abs(at - other) for other in fires))
        assert any(just_misses(rule, tests[at]) for at in nearest), rule.name


@pytest.mark.parametrize("pack", pack_names())
def test_each_rule_says_what_happened_and_what_to_do(pack: str) -> None:
    for rule in own_rules(pack):
        assert rule.message, rule.name
        assert rule.advice, rule.name
        if pack not in {"default", "quiet", "mixed-precision"}:
            assert rule.source, rule.name
