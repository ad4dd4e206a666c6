"""The shipped packs keep to their word: no lint, tests for each rule, sources for their thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepguard.engine import Engine
from stepguard.rules.lint import lint
from stepguard.rules.packs import pack_names, pack_path, read_rules
from stepguard.rules.rule import Rule
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


@pytest.mark.parametrize("pack", pack_names())
def test_each_rule_fires_in_a_test_and_just_misses_in_another(pack: str) -> None:
    tests = shipped_tests(pack)
    for rule in own_rules(pack):
        fires = [test for test in tests if rule.name in {alert.rule for alert in test.expected}]
        looks = [test for test in tests if rule.condition.signals & {*test.run, *test.per_layer}]
        assert fires, rule.name
        assert [test for test in looks if not test.expected], rule.name


@pytest.mark.parametrize("pack", pack_names())
def test_each_rule_says_what_happened_and_what_to_do(pack: str) -> None:
    for rule in own_rules(pack):
        assert rule.message, rule.name
        assert rule.advice, rule.name
        if pack not in {"default", "quiet", "mixed-precision"}:
            assert rule.source, rule.name
