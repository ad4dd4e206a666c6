from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.rules.expression import compile_condition
from stepguard.rules.message import check_message, render

LAYERED = compile_condition("share(crash(act.std, 3, 3, 60)) > 0.5")
RUN = compile_condition("loss > 5")
VALUES = {
    **{"value": 0.123456, "layer": "conv1", "layers": 3, "total": 12, "share": 0.25, "step": 100},
    **{"rise": 31.42, "fall": 5.0, "peak": 2.0},
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("std rose {rise:.1f}x and fell to {value:.3g}", "std rose 31.4x and fell to 0.123"),
        ("{share:.0%} of the layers", "25% of the layers"),
        ("{layers} of {total}, first {layer}", "3 of 12, first conv1"),
        ("{{literally}} {step:,}", "{literally} 100"),
        ("{layer:>8}", "   conv1"),
        ("{step:d} {total:5d}", "100    12"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_a_message_is_filled_in(template: str, expected: str) -> None:
    assert check_message(template, LAYERED) == []
    assert render(template, VALUES) == expected


def test_what_was_not_measured_is_said_to_be_unknown() -> None:
    assert render("{value:.3g} at {layer}", {}) == "unknown at unknown"


def test_numbers_that_are_not_finite_are_written_out() -> None:
    assert render("{value:.3g} {peak:.0%}", {"value": math.nan, "peak": math.inf}) == "nan inf%"


@pytest.mark.parametrize(
    ("template", "offsets"),
    [
        ("a {valu} {rise} {valu}", [2, 16]),
        ("{{ }} {nope}", [6]),
        ("{rise!r:.3f} {nope}", [0, 13]),
        ("{value:d}{step:.2q}{layer:.2f}", [0, 9, 19]),
    ],
)
def test_every_fault_of_a_message_has_its_place(template: str, offsets: list[int]) -> None:
    assert [fault.offset for fault in check_message(template, LAYERED)] == offsets


@pytest.mark.parametrize("name", ["layer", "layers", "total", "share", "rise"])
def test_values_that_a_condition_of_the_run_does_not_have(name: str) -> None:
    assert check_message(f"{{{name}}}", RUN) != []
    assert check_message(f"{{{name}}}", LAYERED) == []


templates = st.text(max_size=30) | st.lists(
    st.sampled_from(
        ["{", "}", "{value", "{rise", "{layer", "{step", ":", ".3g", "}", "!r", "[0]", ".x", "%", "a"]
    )
).map("".join)


@given(templates)
def test_no_template_makes_checking_or_rendering_fail(template: str) -> None:
    faults = check_message(template, LAYERED)
    assert isinstance(render(template, VALUES), str)
    assert all(0 <= fault.offset <= len(template) for fault in faults)


@given(templates, st.floats() | st.integers())
def test_a_template_without_faults_renders_every_number(template: str, value: float) -> None:
    if check_message(template, LAYERED) == []:
        rendered = render(template, {**dict.fromkeys(VALUES, value), "layer": "conv1"})
        assert "unknown" not in rendered
