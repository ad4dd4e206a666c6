from __future__ import annotations

from pathlib import Path

import pytest

from stepguard.rules.lint import lint
from stepguard.rules.packs import pack_names, read_rules


def lints(tmp_path: Path, *rules: str) -> list[str]:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "\n".join(["version: 1", "rules:", *(f"  - {{name: r{i}, {r}}}" for i, r in enumerate(rules))])
    )
    found = lint(read_rules(path))
    assert all(each.level == "warning" for each in found)
    return [str(each.problem).removeprefix(f"{path}:") for each in found]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("when: share(act.std > 3) > 1", "3:22: rule 'r0': 'share(act.std > 3) > 1' is never true"),
        ("when: share(act.std > 3) >= 50", "is never true: share(act.std > 3) lies from 0 to 1"),
        ("when: share(act.std > 3) < 0", "is never true"),
        ("when: share(act.std > 3) >= 0", "is always true"),
        ("when: act.dead > 1.5", "'act.dead > 1.5' is never true: act.dead lies from 0 to 1"),
        ("when: 'any(mean(act.dead, 5) > 2)'", "'mean(act.dead, n=5) > 2' is never true"),
        ("when: act.std < 0", "is never true: act.std lies from 0 up"),
        ("when: act.std >= 0", "is always true"),
        ("when: act.std == -1", "is never true"),
        ("when: act.std != -1", "is always true"),
        ("when: -1 < act.std", "is always true"),
        ("when: 0 > act.std", "is never true"),
        ("when: loss > inf", "'loss > inf' is never true"),
        ("when: loss == nan", "is never true: nothing compares with nan; write nonfinite(x)"),
        ("when: 'mean(loss, 200) > 1', active: ..100", "3:53: rule 'r0': can never fire: it needs 200 steps"),
        (
            "when: 'zscore(mean(loss, 50), 50) > 1', active: 0..98",
            "it needs 100 steps and sleeps after step 98",
        ),
        ("when: 'delta(loss, 100) > 1', active: ..50", "it needs 101 steps and sleeps after step 50"),
        ("when: loss > 1, for: 30, active: ..10", "3:37: rule 'r0': can never fire: it needs 30 steps"),
        ("when: 'step < 50 and mean(loss, 100) > 1'", "it needs 100 steps and holds up to step 50 only"),
        ("when: loss > 5 and loss < 3", "'(loss > 5) and (loss < 3)' is never true: loss cannot be both"),
        ("when: 3 > act.std > 3", "is never true: act.std cannot be both"),
        (
            "when: 'mean(loss, 5) >= 2 and lr > 0 and 1 > mean(loss, 5)'",
            "is never true: mean(loss, n=5) cannot",
        ),
        ("when: loss > 1, layers: {name: a}", "3:40: rule 'r0': the filter does nothing"),
        ("when: loss > 1, action: [halt, {restart: auto}]", "3:47: rule 'r0': restart is never reached"),
    ],
)
def test_what_is_surely_not_meant(rule: str, expected: str, tmp_path: Path) -> None:
    (found,) = lints(tmp_path, rule)
    assert expected in found


@pytest.mark.parametrize(
    "rule",
    [
        "when: share(act.std > 3) >= 1",
        "when: share(act.std > 3) > 0",
        "when: act.std > 1.5",
        "when: update.ratio > 1.5",
        "when: loss < 0",
        "when: act.std <= 0",
        "when: act.dead >= 1",
        "when: 'mean(loss, 100) > 1', active: ..100",
        "when: 'mean(loss, 200) > 1 or loss > 5', active: ..100",
        "when: 'crash(loss, within=200)', active: ..100",
        "when: 'held(loss > 1, 3, of=200)', active: ..100",
        "when: 'mean(loss, 200) > 1', active: 100..",
        "when: act.std > 1, layers: {name: a}",
        "when: loss > 1, action: [restart, halt]",
        "when: loss == inf",
        "when: 3 <= loss <= 3",
        "when: 3 < loss < 5 or loss > 7",
        "when: loss > 5 and lr < 3",
        "when: loss > 5 and loss > 3",
        "when: 'mean(loss, 50) > 1 and (step < 10 or progress < 0.3)'",
        "when: 'mean(loss, 50) > 1 and step < 60'",
    ],
)
def test_what_may_well_be_meant(rule: str, tmp_path: Path) -> None:
    assert lints(tmp_path, rule) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("when: loss > 5", "when: loss>5.0", "4:22: rule 'r1': says what rule 'r0' says"),
        ("when: loss > 5", "when: loss > 6", "whenever 'r1' fires, 'r0' fires and does the same"),
        (
            "when: loss > 6, for: 3",
            "when: loss > 5, for: 2",
            "whenever 'r0' fires, 'r1' fires and does the same",
        ),
        ("when: act.std < 1", "when: act.std < 0.5", "whenever 'r1' fires, 'r0' fires"),
        ("when: loss > 5", "when: loss > 5, for: 2", ""),
        ("when: loss > 5", "when: loss > 5, active: ..10", ""),
        ("when: loss > 5", "when: loss > 6, severity: critical", ""),
        ("when: loss > 5", "when: loss > 6, action: halt", ""),
        ("when: loss > 5, for: 2", "when: loss > 6", ""),
        ("when: loss > 5", "when: lr > 6", ""),
        ("when: loss > 5", "when: loss < 6", ""),
        ("when: loss > 5", "when: loss > lr", ""),
        ("when: act.std > 5, layers: {name: a}", "when: act.std > 5, layers: {name: b}", ""),
    ],
)
def test_two_rules_that_say_the_same(first: str, second: str, expected: str, tmp_path: Path) -> None:
    found = lints(tmp_path, first, second)
    assert len(found) == bool(expected)
    assert all(expected in each for each in found)


def test_percentages_are_noted_once(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "version: 1\nrules:\n"
        "  - {name: a, when: loss > 1, active: ..30%}\n  - {name: b, when: lr > 1, active: 5%..}"
    )
    (found,) = lint(read_rules(path))
    assert found.level == "note"
    assert str(found.problem).endswith("counts in percent and sleeps without total_steps; so do 1 more")


@pytest.mark.parametrize("name", pack_names())
def test_no_shipped_pack_has_a_lint(name: str) -> None:
    assert [str(each.problem) for each in lint(read_rules(name)) if each.level == "warning"] == []
