"""Curves on logarithmic axes, side by side in one SVG, and how steep they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any, NamedTuple

import numpy as np

Point = tuple[float, float]
Row = Mapping[str, Any]
"""`n`, and the `ms` that it took."""
WIDTH, HEIGHT = 400, 310
"""Pixels of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 58, 30, 40, 44
"""Margins of its axes."""
COLUMNS = 2
HEAD = 40
COLOURS = ("#2a6fbb", "#d1495b", "#3a8f5c", "#8a5bb5", "#c98a1b", "#4b9fb5", "#7a6a58")
FONT = "font-family='system-ui, sans-serif'"
QUIET = "#667"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Panel(NamedTuple):
    """One picture: lines by name over one quantity."""

    across: str
    """What grows from left to right."""
    lines: Mapping[str, Sequence[Point]]
    """Points with both coordinates above zero."""


class _Axis(NamedTuple):
    low: int
    high: int
    """Powers of ten."""
    begin: float
    end: float
    """Pixels."""

    def place(self, value: float) -> float:
        return self.begin + (log10(value) - self.low) / (self.high - self.low) * (self.end - self.begin)


def draw(title: str, panels: Sequence[Panel]) -> str:
    """All panels in one picture."""
    rows = ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * WIDTH, HEAD + rows * HEIGHT
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' {FONT}>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(LEFT, 27, title, size=16, colour="#223"),
    ]
    for place, panel in enumerate(panels):
        x, y = place % COLUMNS * WIDTH, HEAD + place // COLUMNS * HEIGHT
        parts += [f"<g transform='translate({x} {y})'>", *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for line in panel.lines.values() for point in line]
    across = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    if len(panel.lines) > 1:
        up = up._replace(high=up.high + 1)  # room for their names
    yield from _grid(across, up)
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, panel.across, anchor="middle")
    yield _text(LEFT, TOP - 12, "ms a step")
    for colour, (name, line) in zip(COLOURS, panel.lines.items(), strict=False):
        yield from _line([(across.place(x), up.place(y)) for x, y in line], colour)
        place = list(panel.lines).index(name)
        yield _text(LEFT + 10, TOP + 16 + 15 * place, name, colour=colour)


def _axis(values: Sequence[float], begin: float, end: float) -> _Axis:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return _Axis(low, max(high, low + 1), begin, end)


def _grid(across: _Axis, up: _Axis) -> Iterator[str]:
    for power in range(across.low, across.high + 1):
        x = across.place(10.0**power)
        yield f"<path d='M{x:.1f} {TOP}V{HEIGHT - BOTTOM}' stroke='#e4e6ea'/>"
        yield _text(x, HEIGHT - BOTTOM + 16, _power(power), anchor="middle")
    for power in range(up.low, up.high + 1):
        y = up.place(10.0**power)
        yield f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='#e4e6ea'/>"
        yield _text(LEFT - 7, y + 4, _power(power), anchor="end")


def _power(power: int) -> str:
    return f"{10.0**power:,g}" if -4 <= power <= 4 else "10" + str(power).translate(_RAISED)


def _line(points: Sequence[Point], colour: str) -> Iterator[str]:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f"<path d='M{path}' fill='none' stroke='{colour}' stroke-width='2'/>"
    for x, y in points:
        yield f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>"


def _text(
    x: float, y: float, text: str, *, size: int = 12, colour: str = QUIET, anchor: str = "start"
) -> str:
    placed = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}'"
    return f"<text {placed} fill='{colour}'>{escape(text)}</text>"


def slopes(rows: Sequence[Row]) -> str:
    """The exponent with which `ms` grows with `n`: of a line through all logarithms, and the last two.

    The last two tell more where a constant part outweighs what grows at first.
    """
    n, ms = (np.log(np.maximum([row[key] for row in rows], 1e-6)) for key in ("n", "ms"))
    through_all, at_end = (
        float(np.polyfit(n[some], ms[some], 1)[0]) for some in (slice(None), slice(-2, None))
    )
    return f"{through_all:.2f}, at the end {at_end:.2f}"


def by_function(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of the windows, by function."""
    return {
        name: [row for row in rows if row["function"] == name]
        for name in dict.fromkeys(row["function"] for row in rows)
    }
