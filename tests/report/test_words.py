from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.recover.decision import STRENGTH, Decision
from stepguard.report.words import deed, listing, number, short_deed, where
from stepguard.signals import Layer


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (999.6, "1,000"),
        (-1234.5, "-1,234"),
        (1e-7, "1e-07"),
        (float("-inf"), "-inf"),
        (2.5e6, "2.5e+06"),
    ],
)
def test_number(value: float, expected: str) -> None:
    assert number(value) == expected


@given(st.floats(-1e300, 1e300))
def test_a_number_is_short_and_close(value: float) -> None:
    text = number(value)
    assert len(text) <= 10
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_listing() -> None:
    assert listing([], 3) == ""
    assert listing(["a"], 3) == "a"
    assert listing(["a", "b", "c"], 3) == "a, b and c"
    assert listing(["a", "b", "c", "d", "e"], 3) == "a, b, c and 2 more"


def test_where_names_the_first_layer_and_the_count() -> None:
    conv, head = Layer("conv", "Conv2d"), Layer("head", "Linear")
    assert where((), 9) == ""
    assert where((conv,), 9) == "conv (Conv2d)"
    assert where((conv, head), 9) == "conv (Conv2d) and 1 more of 9 layers"


def test_every_action_is_a_sentence_in_both_moods(restart: Decision) -> None:
    for kind in STRENGTH:
        decision = replace(restart, kind=kind)
        assert deed(decision).startswith("stepguard ")
        assert "would" not in deed(decision)
        assert deed(replace(decision, dry_run=True)).startswith("stepguard would ")


def test_settings_are_spelled_out(restart: Decision) -> None:
    decision = replace(restart, settings={"lr": 0.5, "init": "kaiming", "clip": 1.0, "seed": 1})
    remedy = "learning rate x0.5, Kaiming initialisation, gradients clipped at 1, seed +1"
    assert deed(decision) == f"stepguard ends this attempt; the next begins from nothing, with {remedy}"
    assert short_deed(decision) == f"restart ({remedy})"
    assert short_deed(replace(decision, settings={}, dry_run=True)) == "would restart"
