"""Charts of fixed size for the terminal: lines over steps, and the colourful dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.text import Text

from stepguard.report.braille import Line, plot
from stepguard.report.palette import FIRST, QUIET, SECOND, viridis
from stepguard.report.words import number
from stepguard.signals import HIST_BINS, HIST_TOP

Array = NDArray[np.float64]

_LABEL = 6
"""Characters of the labels at the ends of the vertical axis."""
_GUTTER = _LABEL + 1
"""Characters left of a drawing: the labels and the axis."""
_SHADES = " ░▒▓█"
"""From few to many, in a terminal with fewer than 256 colours."""
_WIDE = 50.0
"""Values beyond this are drawn on a scale that is linear around 0 and logarithmic farther out."""


@dataclass(frozen=True)
class Axis:
    """The steps of an attempt, and how wide they are drawn."""

    steps: NDArray[np.int64]
    """Steps of the readings, ascending, at least one."""
    width: int
    """Characters of a whole chart, with its labels."""
    height: int = 6
    """Rows of characters of the drawing."""

    @property
    def columns(self) -> int:
        """Characters of the drawing alone."""
        return max(self.width - _GUTTER, 1)

    def places(self) -> Array:
        """Where each reading lies, in 0..1."""
        first, last = self.steps[0], self.steps[-1]
        return (self.steps - first + 0.5) / (last - first + 1)

    def readings(self) -> list[slice]:
        """The readings of each column; a column without any holds the one before it."""
        edges = np.searchsorted(self.places(), np.arange(self.columns + 1) / self.columns)
        return [slice(max(min(a, b - 1), 0), max(b, 1)) for a, b in pairwise(edges.tolist())]

    def frame(self, title: Text, rows: Sequence[Text], top: str, bottom: str) -> RenderResult:
        """A title, the rows with a label at the first and the last, and the first and the last step."""
        title.truncate(self.width, overflow="ellipsis")
        yield title
        labels = [top, *[""] * (len(rows) - 2), bottom]
        for label, row in zip(labels, rows, strict=True):
            yield Text.assemble((f"{label:>{_LABEL}}│", QUIET), row, no_wrap=True)
        first, last = f"{self.steps[0]:,}", f"{self.steps[-1]:,}"
        room = max(self.columns - len(first), 0)
        yield Text(f"{'':{_GUTTER}}{first}{last:>{room}}", style=QUIET, no_wrap=True)


@dataclass(frozen=True)
class LineChart:
    """One or two lines over steps, each named in the title with its last reading."""

    axis: Axis
    lines: Mapping[str, Array]
    """By name; each as long as the axis has steps; not finite where there is no reading."""
    shares: bool = False
    """Whether the values are shares, drawn on 0..1."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        low, high = self._range()
        places = self.axis.places()
        styled = list(zip(self.lines.items(), (FIRST, SECOND), strict=False))
        drawn = [Line(*self._measured(places, values, low, high), style) for (_, values), style in styled]
        rows = plot(drawn, self.axis.columns, self.axis.height)
        title = Text("  ").join(
            Text.assemble((name, style), f" {self._told(values)}") for (name, values), style in styled
        )
        yield from self.axis.frame(title, rows, self._end(high), self._end(low))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.axis.width, self.axis.width)

    def _range(self) -> tuple[float, float]:
        """The ends of the vertical axis; zero is always on it."""
        finite = np.concatenate([values[np.isfinite(values)] for values in self.lines.values()])
        if self.shares or finite.size == 0:
            return 0.0, 1.0
        low, high = min(float(finite.min()), 0.0), max(float(finite.max()), 0.0)
        return (low, high) if high > low else (low, low + 1)

    def _measured(self, places: Array, values: Array, low: float, high: float) -> tuple[Array, Array]:
        """Places and heights of the readings in 0..1. A step at which nothing was measured breaks no line."""
        there = ~np.isnan(values)
        values = np.where(np.isfinite(values), values, np.nan)[there]
        if max(abs(low), abs(high)) > _WIDE:
            values, low, high = np.arcsinh(values), np.arcsinh(low), np.arcsinh(high)
        return places[there], (values - low) / (high - low)

    def _told(self, values: Array) -> str:
        there = values[~np.isnan(values)]
        return self._number(float(there[-1])) if there.size else "-"

    def _number(self, value: float) -> str:
        return f"{value:.0%}" if self.shares and np.isfinite(value) else number(value)

    def _end(self, value: float) -> str:
        """The end of the axis with as many digits as there is room for."""
        texts = (self._number(value), *(f"{value:.{digits}g}" for digits in (2, 1)))
        return next((text for text in texts if len(text) <= _LABEL), texts[-1])


@dataclass(frozen=True)
class ColourfulDimension:
    """Each column a step, each row a bin of abs(x), small values at the bottom; bright where many lie."""

    axis: Axis
    hist: NDArray[np.int32]
    """Counts, shape [steps, HIST_BINS + 1]; all zero where not measured."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if console.color_system in (None, "standard"):
            rows = [_shaded(row) for row in self.levels(self.axis.height)]
        else:
            levels = self.levels(2 * self.axis.height)
            rows = [_coloured(levels[i], levels[i + 1]) for i in range(0, len(levels), 2)]
        yield from self.axis.frame(Text("abs(x), log of counts"), rows, f">{HIST_TOP:.0f}", "0")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.axis.width, self.axis.width)

    def levels(self, rows: int) -> Array:
        """Log counts in 0..1, shape [rows, columns], largest values first; NaN where nothing was measured.

        The first row counts what lies above HIST_TOP, the others divide 0..HIST_TOP evenly.
        """
        counts = np.array([self.hist[readings].mean(axis=0) for readings in self.axis.readings()])
        binned = np.concatenate([_rebinned(counts[:, :HIST_BINS], rows - 1), counts[:, HIST_BINS:]], axis=1)
        logs = np.log1p(binned)
        logs[counts.sum(axis=1) == 0] = np.nan
        top = np.nanmax(logs, initial=0.0)
        return np.transpose(logs / top if top else logs)[::-1]


def _rebinned(counts: Array, bins: int) -> Array:
    """The same counts in fewer or more equal bins; a bin that is cut is shared out evenly. Keeps the sum."""
    total = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    old, new = np.linspace(0, 1, total.shape[1]), np.linspace(0, 1, bins + 1)
    cut: list[Array] = [np.interp(new, old, row) for row in total]
    return np.diff(np.array(cut), axis=1)


def _shaded(levels: Array) -> Text:
    there = np.nan_to_num(levels) * (len(_SHADES) - 1)
    return Text("".join(_SHADES[round(level)] for level in there.tolist()), no_wrap=True)


def _coloured(upper: Array, lower: Array) -> Text:
    """Two rows of levels in one row of half blocks."""
    text = Text(no_wrap=True)
    colours = zip(viridis(np.nan_to_num(upper)).tolist(), viridis(np.nan_to_num(lower)).tolist(), strict=True)
    for there, (above, below) in zip(~np.isnan(upper), colours, strict=True):
        text.append("▄" if there else " ", _two_colours(tuple(above), tuple(below)) if there else None)
    return text


@lru_cache(maxsize=4096)
def _two_colours(above: tuple[int, int, int], below: tuple[int, int, int]) -> Style:
    return Style(color=Color.from_rgb(*below), bgcolor=Color.from_rgb(*above))
