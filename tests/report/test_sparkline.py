from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.report.sparkline import BLOCKS, GAP, NONFINITE, Sparkline, blocks, is_wide

READINGS = st.lists(st.none() | st.floats(width=32), max_size=80)


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([], ""),
        ([1, 2, 3, 4, 5, 6, 7, 8], BLOCKS),
        ([5, 5, 5], "▄▄▄"),
        ([-1, 0, 1], "▁▅█"),
        ([1, None, math.nan, math.inf, 2], "▁ ××█"),  # noqa: RUF001
        ([1, 10, 100, 1000], "▁▃▆█"),  # a log scale: even steps
        ([0, 1, 1000], "▁▁█"),
        ([math.nan, math.nan], "××"),  # noqa: RUF001
    ],
)
def test_blocks(readings: list[float | None], expected: str) -> None:
    assert blocks(readings) == expected


@given(READINGS, st.integers(2, 60))
def test_one_character_a_reading_at_most_width(readings: list[float | None], width: int) -> None:
    text = blocks(readings, width)
    assert len(text) == min(len(readings), width)
    assert set(text) <= {*BLOCKS, GAP, NONFINITE}


@given(READINGS, st.integers(2, 60))
def test_a_nonfinite_reading_is_never_lost(readings: list[float | None], width: int) -> None:
    bad = any(reading is not None and not math.isfinite(reading) for reading in readings)
    assert (NONFINITE in blocks(readings, width)) == bad


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=80))
def test_the_extremes_are_shown_whole(readings: list[float | None]) -> None:
    finite = [reading for reading in readings if reading is not None]
    if finite and min(finite) < max(finite):
        text = blocks(readings, 80)
        assert text[readings.index(min(finite))] == BLOCKS[0]
        assert text[readings.index(max(finite))] == BLOCKS[-1]


def test_a_peak_survives_shrinking() -> None:
    readings: list[float | None] = [1.0] * 400
    readings[123] = 9.0
    assert blocks(readings, 40) == "▁" * 12 + "█" + "▁" * 27


def test_the_newest_reading_stands_alone() -> None:
    readings: list[float | None] = [*(1.0,) * 60, 8.0, 1.0]
    assert blocks(readings, 20) == "▁" * 18 + "█▁"


def test_wide_is_above_zero_and_more_than_fifty_fold() -> None:
    assert is_wide([1, 51])
    assert not is_wide([1, 49])
    assert not is_wide([-1, 1000])
    assert not is_wide([None, math.nan])


def test_sparkline_stands_between_first_and_last(render) -> None:
    line = Sparkline([1.02, None, 12.5, math.nan, 0.0031])
    assert render(line) == "1.02 ▆ █×▁ 0.0031"  # noqa: RUF001
    assert line.range() == "0.0031 to 12.5, log scale"
    assert Sparkline([1.0, math.nan]).range() == "1 to 1"
    assert (render(Sparkline([None])), Sparkline([None]).range()) == ("", "")
