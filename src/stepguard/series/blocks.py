"""Frames side by side: each signal of many steps as one array, the fast way to look at all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.signals import Frame, Vector

Bits = NDArray[np.bool_]


class Column(NamedTuple):
    """One signal over some frames."""

    values: NDArray[Any]
    """float64 [frames] of a scalar, float32 [frames, layers] of a vector; NaN in frames that lack it."""
    known: Bits
    """Of the same shape: False where nothing was measured."""
    present: Bits
    """[frames]: whether the frame has the signal."""


@dataclass(frozen=True)
class Block:
    """Frames in the order in which they were recorded, by columns."""

    steps: NDArray[np.int64]
    """[frames]; steps go back after a rollback, also within a block."""
    scalars: Mapping[str, Column]
    vectors: Mapping[str, Column]
    hist: NDArray[np.int32] | None
    """[frames, layers, HIST_BINS + 1]; None where no frame has one or none was asked for."""
    hist_present: Bits
    """[frames]: whether the frame has a histogram."""

    def __len__(self) -> int:
        return len(self.steps)

    def part(self, places: slice | NDArray[np.intp]) -> Block:
        """The frames at some places."""
        return Block(
            self.steps[places],
            {name: Column(*(part[places] for part in column)) for name, column in self.scalars.items()},
            {name: Column(*(part[places] for part in column)) for name, column in self.vectors.items()},
            None if self.hist is None else self.hist[places],
            self.hist_present[places],
        )

    def alike(self) -> list[tuple[tuple[tuple[str, ...], tuple[str, ...]], NDArray[np.intp]]]:
        """The places of frames that have the same scalars and vectors, together, with the names of these."""
        there = np.array(
            [column.present for part in (self.scalars, self.vectors) for column in part.values()]
        )
        _, firsts, which = np.unique(
            np.packbits(there, axis=0), axis=1, return_index=True, return_inverse=True
        )
        return [
            ((_present(self.scalars, first), _present(self.vectors, first)), np.flatnonzero(which == number))
            for number, first in enumerate(firsts.tolist())
        ]

    def frames(self) -> Iterator[Frame]:
        """The frames one by one; their arrays are views of the block.

        Frames share a vector that stays the same, as that of a count of NaN mostly does.
        """
        scalars = [
            (name, c.values.tolist(), c.present.tolist()) for name, c in self.scalars.items() if len(c.values)
        ]
        vectors: list[dict[str, Vector]] = [{} for _ in range(len(self))]
        for name, column in self.vectors.items():
            for place, vector in _rows(column):
                vectors[place][name] = vector
        for place, step in enumerate(self.steps.tolist()):
            yield Frame(
                step,
                {name: values[place] for name, values, present in scalars if present[place]},
                vectors[place],
                self.hist[place] if self.hist is not None and self.hist_present[place] else None,
            )


def _present(columns: Mapping[str, Column], place: int) -> tuple[str, ...]:
    return tuple(name for name, column in columns.items() if column.present[place])


def joined(blocks: Sequence[Block]) -> Block:
    """The frames of some blocks of the same layers as one block, without their histograms."""
    if len(blocks) == 1:
        return blocks[0]
    steps = np.concatenate([block.steps for block in blocks])
    scalars = _joined([(len(block), block.scalars) for block in blocks])
    vectors = _joined([(len(block), block.vectors) for block in blocks])
    return Block(steps, scalars, vectors, None, np.zeros(len(steps), np.bool_))


def _joined(parts: Sequence[tuple[int, Mapping[str, Column]]]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name, some in {name: column for _, part in parts for name, column in part.items()}.items():
        found = [part.get(name) or _lacking(frames, some) for frames, part in parts]
        columns[name] = Column(*(np.concatenate(each) for each in zip(*found, strict=True)))
    return columns


def _lacking(frames: int, like: Column) -> Column:
    """A column of frames that lack the signal."""
    shape = (frames, *like.values.shape[1:])
    values = np.full(shape, np.nan, like.values.dtype)
    return Column(values, np.zeros(shape, np.bool_), np.zeros(frames, np.bool_))


def _rows(column: Column) -> Iterator[tuple[int, Vector]]:
    """The vectors of a column by place; one that is that before it, bit for bit, is the same object."""
    places = np.flatnonzero(column.present)
    whole = len(places) == len(column.present)
    values, known = (part if whole else part[places] for part in column[:2])
    same = (values[1:].view(np.int32) == values[:-1].view(np.int32)).all(axis=1)
    same &= (known[1:] == known[:-1]).all(axis=1)
    vector: Vector | None = None
    for row, (place, repeated) in enumerate(zip(places.tolist(), (False, *same.tolist()), strict=False)):
        vector = vector if vector is not None and repeated else Vector(values[row], known[row])
        yield place, vector
