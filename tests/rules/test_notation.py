from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.rules.notation import LONGEST, SeriesError, read_series


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("1", [1]),
        ("  1\n2 ", [1, 2]),
        ("-2.5e3 +.5 3.", [-2500, 0.5, 3]),
        ("1x3", [1, 1, 1, 1]),
        ("1x0", [1]),
        ("1+2x3", [1, 3, 5, 7]),
        ("1-2x2", [1, -1, -3]),
        ("-2+4x3", [-2, 2, 6, 10]),
        ("1+-2x2", [1, -1, -3]),
        ("1e-3-1e-3x1", [0.001, 0]),
        ("1*2x4", [1, 2, 4, 8, 16]),
        ("8*0.5x3", [8, 4, 2, 1]),
        ("1*10x400", [*(float(f"1e{index}") for index in range(309)), *[math.inf] * 92]),
        ("_", [None]),
        ("_x3", [None, None, None]),
        ("_x0", []),
        ("1 _ infx1 -inf", [1, None, math.inf, math.inf, -math.inf]),
    ],
)
def test_a_series_is_read(text: str, expected: list[float | None]) -> None:
    assert read_series(text) == pytest.approx(expected)


def test_nan_is_a_reading() -> None:
    first, second = read_series("nan _")
    assert first is not None
    assert math.isnan(first)
    assert second is None


@pytest.mark.parametrize(
    "text", ["1 x", "1 1+2", "1 1*2x", "1 1x-2", "1 __", "1 0y10", "1 1e", "1 1,", "1 _+1x2", "1 \u0661"]
)
def test_a_word_that_is_no_series_is_named_with_its_place(text: str) -> None:
    with pytest.raises(SeriesError) as caught:
        read_series(text)
    assert caught.value.fault.offset == 2
    assert ascii(text.split()[1]) in caught.value.fault.what


@pytest.mark.parametrize("text", ["1x100000", "1x99999999999999999999", "_x60000 _x60000"])
def test_a_series_is_bounded(text: str) -> None:
    with pytest.raises(SeriesError, match=f"{LONGEST:,}"):
        read_series(text)


@given(st.text(max_size=30) | st.lists(st.sampled_from("0123456789.eE+-*x_ nainf")).map("".join))
def test_no_text_makes_the_notation_fail(text: str) -> None:
    try:
        values = read_series(text)
    except SeriesError as error:
        assert error.fault.what
    else:
        assert all(value is None or isinstance(value, float) for value in values)
