"""Lines drawn with braille dots: two by four dots in each character cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

Array = NDArray[np.float64]

_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""The bit of each dot of a cell, rows from the top, in Unicode's order from U+2800 on."""


class Line(NamedTuple):
    """A line over a unit square: 0, 0 is the lower left corner."""

    x: Array
    """In 0..1, ascending."""
    y: Array
    """In 0..1; NaN breaks the line."""
    style: str


def plot(lines: Sequence[Line], width: int, height: int) -> list[Text]:
    """Draw lines into `height` rows of `width` characters; where they cross, the later line's style holds."""
    bits = np.zeros((height, width), np.int64)
    owner = np.full((height, width), -1)
    for i, line in enumerate(lines):
        cells = _cells(_dots(line, 2 * width, 4 * height))
        bits |= cells
        owner[cells > 0] = i
    return [_row(bits[row], owner[row], lines) for row in range(height)]


def _row(bits: NDArray[np.int64], owner: NDArray[np.int64], lines: Sequence[Line]) -> Text:
    text = Text(no_wrap=True)
    for cell, i in zip(bits.tolist(), owner.tolist(), strict=True):
        text.append(chr(0x2800 + cell) if cell else " ", lines[int(i)].style if cell else "")
    return text


def _cells(dots: NDArray[np.bool_]) -> NDArray[np.int64]:
    height, width = dots.shape[0] // 4, dots.shape[1] // 2
    grouped = np.reshape(dots, (height, 4, width, 2))
    return np.einsum("hiwj,ij->hw", grouped, _BITS)


def _dots(line: Line, width: int, height: int) -> NDArray[np.bool_]:
    """The dots of one line, rows from the top."""
    dots = np.zeros((height, width), np.bool_)
    if len(line.x) == 0:
        return dots
    columns = np.minimum((line.x * width).astype(np.int64), width - 1)
    rows = (height - 1) * (1 - np.minimum(np.maximum(line.y, 0), 1))
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    columns = columns[starts]
    low, high = np.fmin.reduceat(rows, starts), np.fmax.reduceat(rows, starts)
    for column, a, b in zip(columns, low, high, strict=True):
        if not np.isnan(a):
            dots[round(a) : round(b) + 1, column] = True
    ends = np.append(starts[1:], len(rows)) - 1
    joints = zip(columns, rows[ends], columns[1:], rows[starts[1:]], strict=False)
    for column, row, next_column, next_row in joints:
        _join(dots, (column, row), (next_column, next_row))
    return dots


def _join(dots: NDArray[np.bool_], start: tuple[int, float], end: tuple[int, float]) -> None:
    """A straight line between two dots; none where one end is not there."""
    if np.isnan(start[1]) or np.isnan(end[1]):
        return
    first, last = round(start[1]), round(end[1])
    n = max(abs(end[0] - start[0]), abs(last - first)) + 1
    columns, rows = np.linspace(start[0], end[0], n), np.linspace(first, last, n)
    dots[np.rint(rows).astype(np.int64), np.rint(columns).astype(np.int64)] = True
