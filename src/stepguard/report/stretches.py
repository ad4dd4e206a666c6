"""Recorded frames in stretches.

Over nearly all of a run nothing happens, and that is told for many frames at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from stepguard.series.blocks import Block, joined
from stepguard.signals import Frame

T = TypeVar("T")

_TOGETHER = 2048
"""Frames that are looked at together."""
_READINGS = 32_768
"""Readings of a signal that are looked at together at most, or nearly so."""
_CLOSE = 128
"""Frames that are looked at one by one where something may happen."""


def stretches(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same frames in blocks of about the size that is looked at quickest."""
    gathered: list[Block] = []
    for block in blocks:
        gathered.append(block)
        if sum(map(len, gathered)) >= _TOGETHER or sum(map(_readings, gathered)) >= _READINGS:
            yield from _cut(joined(gathered))
            gathered = []
    if gathered:
        yield from _cut(joined(gathered))


def _cut(block: Block) -> Iterator[Block]:
    pieces = min(max(_readings(block) // _READINGS, 1), len(block))
    for places in np.array_split(np.arange(len(block)), pieces):
        yield block.part(slice(places[0], places[-1] + 1))


def _readings(block: Block) -> int:
    """How many numbers a signal has, on average."""
    columns = block.vectors.values()
    numbers = sum(np.count_nonzero(column.present) * column.values.shape[1] for column in columns)
    return numbers // max(len(columns), 1)


def happenings(
    block: Block, pass_over: Callable[[Block], int], look: Callable[[Frame], T | None]
) -> Iterator[T]:
    """What looking at the frames of a block gives, where it gives anything.

    Args:
        block: the frames.
        pass_over: takes in, at once, as many of the first frames as surely give nothing, and says how many.
        look: takes in one frame.
    """
    while len(block):
        block = block.part(slice(pass_over(block), None))
        for frame in block.part(slice(_CLOSE)).frames():
            found = look(frame)
            if found:
                yield found
        block = block.part(slice(_CLOSE, None))
