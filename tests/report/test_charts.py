from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stepguard.report.braille import Line, plot
from stepguard.report.charts import Axis, ColourfulDimension, LineChart
from stepguard.report.palette import viridis
from stepguard.signals import HIST_BINS

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=50)


def dots(text: str) -> np.ndarray:
    """The dots of one row of braille: shape [4, 2 * characters]."""
    order = [[0, 3], [1, 4], [2, 5], [6, 7]]
    codes = [ord(c) - 0x2800 if c != " " else 0 for c in text]
    return np.array([[code >> bit & 1 for code in codes for bit in row] for row in order])


def drawn(x: list[float], y: list[float], width: int, height: int) -> np.ndarray:
    rows = plot([Line(np.array(x), np.array(y), "")], width, height)
    return np.concatenate([dots(row.plain) for row in rows])


def test_a_rising_line_is_a_diagonal_of_dots() -> None:
    n = 16
    x = (np.arange(n) + 0.5) / n
    picture = drawn(x.tolist(), (np.arange(n) / (n - 1)).tolist(), 8, 4)
    assert picture.sum() == n
    assert np.array_equal(picture, np.fliplr(np.eye(n)))


def test_a_flat_line_fills_one_row() -> None:
    picture = drawn([0.01, 0.99], [0.0, 0.0], 5, 2)
    assert picture.sum(axis=1).tolist() == [0, 0, 0, 0, 0, 0, 0, 10]


def test_nan_breaks_the_line() -> None:
    picture = drawn([0.01, 0.2, 0.5, 0.8, 0.99], [0, 0, np.nan, 0, 0], 5, 1)
    assert picture[-1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]


def test_every_reading_of_a_column_is_within_its_stroke() -> None:
    picture = drawn([0.4, 0.41, 0.42, 0.43], [0.5, 0.0, 1.0, 0.5], 1, 4)
    assert picture.sum(axis=0).tolist() == [16, 0]


@given(SHARES, st.integers(1, 20), st.integers(1, 6))
def test_every_reading_has_a_dot_in_its_place(shares: list[float], width: int, height: int) -> None:
    x = (np.arange(len(shares)) + 0.5) / len(shares)
    picture = drawn(x.tolist(), shares, width, height)
    for place, share in zip(x, shares, strict=True):
        row = round((4 * height - 1) * (1 - share))
        assert picture[row, min(int(place * 2 * width), 2 * width - 1)]


def test_the_later_line_owns_a_cell_that_both_cross() -> None:
    x, y = np.array([0.0, 0.99]), np.array([0.0, 0.0])
    (row,) = plot([Line(x, y, "red"), Line(x[:1], y[:1], "blue")], 3, 1)
    assert [str(span.style) for span in row.spans] == ["blue", "red", "red"]


def test_line_chart(render) -> None:
    steps = np.arange(10, 1011, 100)
    lines = {"mean": np.full(11, -0.5), "std": np.linspace(1, 2, 11)}
    text = render(LineChart(Axis(steps, 21, 4), lines), width=40)
    assert text.splitlines()[0] == "mean -0.5  std 2"
    assert text.splitlines()[-1] == "       10       1,010"
    labels = [line[:7] for line in text.splitlines()[1:-1]]
    assert labels == ["     2│", "      │", "      │", "  -0.5│"]
    picture = np.concatenate([dots(f"{line[7:]:<14}") for line in text.splitlines()[1:-1]])
    assert picture[-1].all(), "the mean lies at the foot"
    heights = np.argmax(picture[:-1], axis=0)
    assert heights[0] == 6, "std begins at 1 on an axis from -0.5 to 2"
    assert heights[-1] == 0
    assert (np.diff(heights) <= 0).all()


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (-0.0317, 1.0, ["     1", "-0.032"]),
        (-1.23e-5, 123456.0, [" 1e+05", "-1e-05"]),
        (0.0, 0.0, ["     1", "     0"]),
    ],
)
def test_labels_keep_to_their_room(render, low: float, high: float, labels: list[str]) -> None:
    lines = render(LineChart(Axis(np.arange(2), 20, 2), {"mean": np.array([low, high])})).splitlines()
    assert [line.partition("│")[0] for line in lines[1:3]] == labels


def test_shares_are_drawn_on_zero_to_one(render) -> None:
    chart = LineChart(Axis(np.arange(4), 20, 2), {"dead": np.full(4, 0.02)}, shares=True)
    lines = render(chart).splitlines()
    assert lines[0] == "dead 2%"
    assert (lines[1][:7], lines[2][:7]) == ("  100%│", "    0%│")
    assert lines[1][7:] == ""


def test_far_values_leave_near_ones_visible(render) -> None:
    values = np.array([1.0, 1.0, 1e6, 1.0])
    chart = LineChart(Axis(np.arange(4), 27, 4), {"std": values})
    rows = [dots(f"{line[7:]:<20}") for line in render(chart).splitlines()[1:-1]]
    assert np.concatenate(rows)[-1, 0] == 0, "1 lies above the foot although the top is a million"


@pytest.mark.parametrize("values", [[np.nan, np.nan], [np.inf, np.inf]])
def test_a_chart_without_readings_is_empty(render, values: list[float]) -> None:
    rows = render(LineChart(Axis(np.arange(2), 20, 2), {"std": np.array(values)})).splitlines()
    assert [row[7:] for row in rows[1:3]] == ["", ""]


def test_steps_that_were_not_sampled_hold_the_reading_before() -> None:
    axis = Axis(np.array([0, 1, 2, 10, 20]), width=28)
    assert axis.columns == 21
    readings = [(part.start, part.stop) for part in axis.readings()]
    assert readings == [(0, 1), (1, 2), *[(2, 3)] * 8, *[(3, 4)] * 10, (4, 5)]


def test_more_steps_than_columns_share_them_out() -> None:
    readings = Axis(np.arange(100), width=27).readings()
    assert [part.stop - part.start for part in readings] == [5] * 20
    assert readings[0].start == 0
    assert readings[-1].stop == 100


def hist(*columns: dict[int, int]) -> np.ndarray:
    counts = np.zeros((len(columns), HIST_BINS + 1), np.int32)
    for row, column in zip(counts, columns, strict=True):
        row[list(column)] = list(column.values())
    return counts


def test_small_values_lie_at_the_bottom_and_many_are_bright() -> None:
    chart = ColourfulDimension(Axis(np.arange(3), 10), hist({0: 1000, 49: 10}, {0: 1000}, {50: 31}))
    levels = chart.levels(11)
    assert levels.shape == (11, 3)
    assert levels[-1].tolist() == [1.0, 1.0, 0.0]
    assert levels[1, 0] == pytest.approx(np.log(11) / np.log(1001)), "the bin below 10 is the second row"
    assert levels[0].tolist() == [0.0, 0.0, pytest.approx(np.log(32) / np.log(1001))], "above 10"
    assert (levels[2:-1] == 0).all()


@given(st.lists(st.integers(0, 1000), min_size=51, max_size=51), st.integers(2, 60))
def test_rebinning_keeps_the_counts(counts: list[int], rows: int) -> None:
    chart = ColourfulDimension(Axis(np.arange(1), 8), np.array([counts], np.int32))
    levels = chart.levels(rows)[:, 0]
    if sum(counts) == 0:
        assert np.isnan(levels).all()
        return
    logs = levels * np.log1p(_largest(counts, rows))
    assert np.expm1(logs).sum() == pytest.approx(sum(counts))


def _largest(counts: list[int], rows: int) -> float:
    """The fullest row, by cutting every bin into as many parts as there are rows."""
    parts = np.repeat(np.array(counts[:-1]) / (rows - 1), rows - 1).reshape(rows - 1, -1)
    return max(*parts.sum(axis=1), counts[-1])


def coloured(chart: ColourfulDimension, **options: object) -> str:
    console = Console(file=io.StringIO(), width=40, force_terminal=True, **options)  # type: ignore[arg-type]
    with console.capture() as capture:
        console.print(chart)
    return capture.get()


def test_colours_are_viridis_two_bins_a_cell() -> None:
    chart = ColourfulDimension(Axis(np.arange(1), 8, 2), hist({0: 100}))
    rows = coloured(chart, color_system="truecolor", legacy_windows=False).splitlines()
    purple, yellow = "68;1;84", "253;231;37"
    assert f"38;2;{purple};48;2;{purple}m▄" in rows[1]
    assert f"38;2;{yellow};48;2;{purple}m▄" in rows[2], "the lower half is the brighter"


def test_few_colours_are_shades(render) -> None:
    chart = ColourfulDimension(Axis(np.arange(2), 9, 2), hist({0: 100}, {}))
    assert coloured(chart, color_system="standard").splitlines()[2].endswith("█ ")
    assert render(chart).splitlines()[1:3] == ["   >10│", "     0│█"]


def test_viridis_runs_from_dark_to_bright() -> None:
    light = viridis(np.linspace(0, 1, 256)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -1).all()
    assert light[-1] > 5 * light[0]
