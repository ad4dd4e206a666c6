from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.rules.expression import compile_condition
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.packs import load_rules, pack_names
from stepguard.rules.phrasing import PHRASES, phrase

STD = "act.std (standard deviation of the output)"


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (
            "lr > 0 and not sure(loss < 1)",
            "and it is not so that it is sure that loss (the loss given to the guard) is",
        ),
        ("nonfinite(loss)", "when loss (the loss given to the guard) is NaN or infinite"),
        ("act.std < 0.1 or act.std > 10", f"at each layer where {STD} is below 0.1, or act.std is above 10"),
        ("act.std < 1e-8", f"at each layer whose {STD} is below 1e-08"),
        ("all(act.std == 0) and lr > 0", f"when at every layer {STD} equals 0, and lr (learning rate of the"),
        ("count(not act.std > 1) != 2", "the number of layers where it is not so that act.std"),
        ("first(act.std) / last(act.std) < 2", f"when {STD} at the first layer over act.std at the"),
        ("(act.std + 1) * 2 > -step", f"({STD} plus 1) times 2 is above minus the step"),
        ("mean(abs(act.std), 1) > 2", f"mean of the size without sign of {STD} over the last 1 step is"),
        ("1 < loss < 5 or lr > 1", "the guard), and loss is below 5), or lr"),
        (
            "held(any(spike(lr * act.std, 8, by=2)), 3, of=9)",
            "in at least 3 of the last 9 steps at one layer or",
        ),
        ("any(crash(act.std, young=9))", "within 60 steps (9 spreads in youth)"),
        ("plateau(loss, 300, by=0.01)", "has surely fallen by less than 1 % over the last 300 steps"),
        ("metric.f1 > 1 or progress > 0.5", "the user) is above 1, or the share of the run that is"),
    ],
)
def test_words_of_a_condition(condition: str, words: str) -> None:
    assert words in phrase(compile_condition(condition))


def test_every_function_has_words_that_name_all_its_settings() -> None:
    assert set(PHRASES) == set(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        named = {word.split("_")[0] for word in re.findall(r"{(\w+)}", PHRASES[name])}
        assert named == {"x"} | {setting.name for setting in function.settings}


@pytest.mark.parametrize("pack", pack_names())
def test_every_shipped_rule_can_be_said(pack: str) -> None:
    for rule in load_rules(pack):
        said = phrase(rule.condition)
        assert all(signal in said for signal in rule.condition.signals)
        assert "{" not in said


NUMBERS = st.recursive(
    st.sampled_from(["loss", "worst(act.std)", "step", "1", "0.5"]),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+*/"), inner)
        | st.builds("({} - lr)".format, inner)
        | st.builds("{}({}, {})".format, st.sampled_from(["mean", "growth", "std"]), inner, st.integers(2, 9))
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(left=NUMBERS, right=NUMBERS, numbers=st.floats(0.001, 1e6))
def test_any_condition_has_words_with_its_numbers(left: str, right: str, numbers: float) -> None:
    text = f"{left} > {right} * lr or loss < {numbers!r}"
    said = phrase(compile_condition(text))
    assert f"{numbers:g}" in said
    assert said.count("is above") == 1
    assert said.count("(") == said.count(")")
