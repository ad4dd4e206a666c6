from __future__ import annotations

import pytest

from stepguard.errors import StepguardError
from stepguard.rules.packs import load_rules, pack_names, read_text_rules
from stepguard.rules.rule import Ruleset
from stepguard.rules.sweep import MOST_VARIANTS, knobs, read_axis, variants

TEXT = """\
version: 1
rules:
  - {name: crash, when: 'share(crash(act.std, 4, within=60)) >= 0.5', for: 2, keep: 7}
  - {name: crash.late, when: act.std < 0.1 or act.std > 10}
  - {name: wild, when: 'held(growth(grad_norm, 1) >= 2, 6, of=8) or spike(grad_norm, 100, by=20)'}
  - {name: sliver, when: 'first(grad.rms) / last(grad.rms) < 1e-5 and -1 < loss'}
  - {name: long, when: ' loss  >  mean( loss, n = 9 ) '}
"""
SHARES = ",".join(f"0.{hundredths}" for hundredths in range(10, 21))
RULES = read_text_rules(TEXT, "own.yaml")


def conditions(*grids: str, rules: Ruleset = RULES) -> dict[str, list[str]]:
    made = variants(rules, [read_axis(grid, rules) for grid in grids])
    return {variant.label: [rule.condition.text for rule in variant.rules] for variant in made}


@pytest.mark.parametrize(
    ("grid", "condition"),
    [
        ("crash.share=.25", "share(crash(act.std, 4, within=60)) >= .25"),
        ("crash.threshold=0.2", "share(crash(act.std, 4, within=60)) >= 0.2"),
        ("crash.rise=5", "share(crash(act.std, 5, within=60)) >= 0.5"),
        ("crash.fall=5", "share(crash(act.std, 4, within=60, fall=5)) >= 0.5"),
        ("crash.crash.within=50", "share(crash(act.std, 4, within=50)) >= 0.5"),
        ("crash.late.act.std.1=0.2", "act.std < 0.2 or act.std > 10"),
        ("crash.late.act.std.2=20", "act.std < 0.1 or act.std > 20"),
        ("wild.growth=3", "held(growth(grad_norm, 1) >= 3, 6, of=8) or spike(grad_norm, 100, by=20)"),
        ("wild.spike.n=50", "held(growth(grad_norm, 1) >= 2, 6, of=8) or spike(grad_norm, 50, by=20)"),
        ("wild.of=9", "held(growth(grad_norm, 1) >= 2, 6, of=9) or spike(grad_norm, 100, by=20)"),
        ("sliver.threshold=1e-7", "first(grad.rms) / last(grad.rms) < 1e-7 and -1 < loss"),
        ("sliver.loss=-2.5", "first(grad.rms) / last(grad.rms) < 1e-5 and -2.5 < loss"),
        ("long.n=20", " loss  >  mean( loss, n = 20 ) "),
    ],
)
def test_one_number_is_replaced_where_it_stands(grid: str, condition: str) -> None:
    assert list(conditions(grid).values()) == [[condition]]


def test_fields_are_varied_too() -> None:
    made = variants(RULES, [read_axis("crash.for=1,3", RULES), read_axis("crash.keep=0", RULES)])
    assert [(rule.hold, rule.keep) for variant in made for rule in variant.rules] == [(1, 0), (3, 0)]


def test_several_grids_give_the_product() -> None:
    assert conditions("crash.share=0.2,0.8", "crash.fall=2, 3,2") == {
        f"share={share} fall={fall}": [f"share(crash(act.std, 4, within=60, fall={fall})) >= {share}"]
        for share in ("0.2", "0.8")
        for fall in ("2", "3")
    }


def test_rules_are_named_where_several_are_varied() -> None:
    made = conditions("crash.share=0.2", "long.n=5")
    assert list(made) == ["crash.share=0.2 long.n=5"]
    assert [len(texts) for texts in made.values()] == [2]


def test_values_that_are_allowed_only_together() -> None:
    (texts,) = conditions("wild.held.n=10", "wild.of=20").values()
    assert texts[0].startswith("held(growth(grad_norm, 1) >= 2, 10, of=20)")


@pytest.mark.parametrize(
    ("grids", "told"),
    [
        (["crash.share"], "--grid (expected RULE.SETTING=V1,V2, got 'crash.share')"),
        (["crash.share=0.1,,0.2"], "--grid (expected RULE.SETTING=V1,V2"),
        (["crsh.share=0.1"], "an unknown rule (expected RULE.SETTING=V1,V2, got 'crsh.share'; did"),
        (["crash=0.1"], "an unknown rule"),
        (
            ["crash.rize=2"],
            "nothing to vary (expected crash.rise, crash.within, crash.fall, crash.young, share, for",
        ),
        (["crash.rize=2"], "; did you mean 'rise'?)"),
        (["wild.n=5"], "several numbers go by 'n' (expected growth.n, held.n or spike.n)"),
        (["crash.late.act.std=5"], "several numbers go by 'act.std' (expected act.std.1 or act.std.2)"),
        (["crash.rise=0.5"], "--grid crash, rise=0.5: rise of crash (expected a number above 1, got 0.5)"),
        (["crash.within=2.5"], "within of crash (expected a whole number of 2 or more, got 2.5)"),
        (["crash.share=act.std"], "--grid crash.share=act.std (expected a number, got 'act.std')"),
        (["crash.share=0.5) or (loss"], "(expected a number"),
        (["crash.share='"], "(expected a number"),
        (["crash.for=0"], "(expected a whole number of 1 or more, got '0')"),
        (["crash.for=1.5"], "(expected a whole number of 1 or more, got '1.5')"),
        (["wild.held.n=9"], "n of held (expected at most 8, its 'of', got 9)"),
        (["crash.share=0.1", "crash.share=0.2"], "a setting is given twice"),
        ([f"crash.share={SHARES}", "long.n=1,2,3,4,5,6,7,8,9,10"], "at most 100 combinations, got 110"),
    ],
)
def test_what_cannot_be_varied_is_told_with_a_near_miss(grids: list[str], told: str) -> None:
    with pytest.raises(StepguardError) as caught:
        conditions(*grids)
    assert told in str(caught.value)


def test_a_hundred_combinations_are_allowed() -> None:
    tens = ",".join(f"{value / 10:g}" for value in range(1, 11))
    assert len(conditions(f"crash.share={tens}", f"long.n={tens.replace('0.', '1')}")) == MOST_VARIANTS


@pytest.mark.parametrize("pack", pack_names())
def test_every_number_of_every_shipped_rule_has_a_name_of_its_own(pack: str) -> None:
    for rule in load_rules(pack):
        found = knobs(rule.condition.text)
        names = [knob.names[0] for knob in found]
        assert len(set(names)) == len(names)
        for knob in found:
            before = rule.condition.text[knob.start : knob.end] or "2"
            if names.count(knob.names[0]) == 1 and not knob.before:
                (text,) = conditions(f"{rule.name}.{knob.names[0]}={before}", rules=Ruleset((rule,))).values()
                assert text == [rule.condition.text]
