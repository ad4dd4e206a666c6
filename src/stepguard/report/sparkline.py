"""A row of block characters that shows readings over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from stepguard.report.palette import BAD, QUIET
from stepguard.report.words import number

BLOCKS = "▁▂▃▄▅▆▇█"
NONFINITE = "×"  # noqa: RUF001 the sign, not the letter
GAP = " "
WIDE = 50.0
"""Readings above zero whose range is wider than this factor are shown on a log scale."""


def is_wide(readings: Sequence[float | None]) -> bool:
    """Whether a log scale is needed: nothing below zero, and the range above it wider than `WIDE`."""
    finite = [reading for reading in readings if reading is not None and math.isfinite(reading)]
    above = [reading for reading in finite if reading > 0]
    return bool(above) and min(finite) >= 0 and max(above) > WIDE * min(above)


def blocks(readings: Sequence[float | None], width: int = 40) -> str:
    """One character a reading, at most `width` of two or more: low for the smallest, full for the largest.

    `×` stands for NaN and infinity, a space for a reading that is not there (None). Where there are more
    readings than characters, the last character shows the newest reading, and each other one that of its
    readings which lies farthest from the median.

    >>> blocks([1, 2, None, 3, 4, float("nan")])
    '▁▃ ▆█×'
    """  # noqa: RUF002 the sign is what it prints
    scaled = _shrunk(_heights(readings), width)
    finite = [height for height in scaled if height is not None and math.isfinite(height)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(height, low, high) for height in scaled)


def _heights(readings: Sequence[float | None]) -> list[float | None]:
    """Readings on a linear or a log scale; a zero on a log scale lies at the smallest reading above it."""
    if not is_wide(readings):
        return list(readings)
    least = min(reading for reading in readings if reading is not None and reading > 0)
    return [_log(reading, least) if reading is not None else None for reading in readings]


def _log(reading: float, least: float) -> float:
    return math.log(max(reading, least)) if math.isfinite(reading) else reading


def _shrunk(heights: list[float | None], width: int) -> list[float | None]:
    if len(heights) <= width:
        return heights
    finite = sorted(height for height in heights if height is not None and math.isfinite(height))
    middle = finite[len(finite) // 2] if finite else 0.0
    early = len(heights) - 1
    edges = [early * i // (width - 1) for i in range(width)]
    return [*(_standing_out(heights[a:b], middle) for a, b in pairwise(edges)), heights[-1]]


def _standing_out(heights: list[float | None], middle: float) -> float | None:
    there = [height for height in heights if height is not None]
    return max(there, key=lambda height: _distance(height, middle), default=None)


def _distance(height: float, middle: float) -> float:
    return abs(height - middle) if math.isfinite(height) else math.inf


def _block(height: float | None, low: float, high: float) -> str:
    if height is None:
        return GAP
    if not math.isfinite(height):
        return NONFINITE
    if high == low:
        return BLOCKS[len(BLOCKS) // 2 - 1]
    return BLOCKS[round((height - low) / (high - low) * (len(BLOCKS) - 1))]


@dataclass(frozen=True)
class Sparkline:
    """Readings as blocks between the first and the last reading: `1.02 ▁▃▆█▁ 0.003`."""

    readings: Sequence[float | None]
    style: str = ""
    width: int = 40
    """Characters for the blocks alone."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text()

    def text(self) -> Text:
        """The blocks in their style, non-finite ones in red, between the first and the last reading."""
        text = Text(blocks(self.readings, self.width), style=self.style, no_wrap=True)
        text.highlight_words([NONFINITE], style=BAD)
        there = [reading for reading in self.readings if reading is not None]
        if not there:
            return text
        return Text.assemble((number(there[0]), QUIET), " ", text, " ", (number(there[-1]), "bold"))

    def range(self) -> str:
        """The smallest and the largest reading, and the scale if it is not linear; empty without any."""
        finite = [reading for reading in self.readings if reading is not None and math.isfinite(reading)]
        if not finite:
            return ""
        scale = ", log scale" if is_wide(self.readings) else ""
        return f"{number(min(finite))} to {number(max(finite))}{scale}"
