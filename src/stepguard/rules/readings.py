"""The last readings of the signals that conditions are about: what a person is shown as evidence."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.series.blocks import Column
from stepguard.signals import Vector

KEPT = 60
"""Readings that are kept of a signal."""


class Readings:
    """The last readings of one signal, of the run or of each layer.

    They are kept as they came, and looked at only when someone asks. Twice `KEPT` are kept, so that after a
    `rewind` there still are some.
    """

    def __init__(self, layers: int | None) -> None:
        """`layers` is None for a signal of the run."""
        self._layers = layers
        self._kept: deque[tuple[int, Vector | float]] = deque(maxlen=2 * KEPT)

    def push(self, step: int, reading: Vector | float | None) -> None:
        """Keep the reading of a step; nothing if nothing was measured, or of another number of layers."""
        kept = self._kept
        if reading is None:
            return
        if (kept and reading is kept[-1][1]) or not isinstance(reading, Vector) or self._fits(reading):
            kept.append((step, reading))

    def extend(self, steps: NDArray[np.int64], column: Column) -> None:
        """Keep the readings of many steps, as `push` does one by one."""
        places = np.flatnonzero(column.present)[-2 * KEPT :].tolist()
        if self._layers is None:
            values = column.values.tolist()
            self._kept.extend((int(steps[place]), values[place]) for place in places)
        else:
            for place in places:
                self.push(int(steps[place]), Vector(column.values[place], column.known[place]))

    def _fits(self, vector: Vector) -> bool:
        return vector.values.shape == (self._layers,) and bool(np.count_nonzero(vector.known))

    def last(self, layer: int | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Give steps and values of the last readings, of one layer or of the run, oldest first.

        Values are rounded to float32, and NaN where one was not finite.
        """
        newest = list(islice(reversed(self._kept), KEPT))[::-1]
        found = [(step, *_at(reading, layer)) for step, reading in newest]
        steps = tuple(step for step, _, known in found if known)
        with np.errstate(over="ignore"):
            values = np.array([value for _, value, known in found if known], np.float32)
        return steps, tuple(np.where(np.isfinite(values), values, np.nan).tolist())

    def rewind(self, step: int) -> None:
        """Forget the readings after a step."""
        while self._kept and self._kept[-1][0] > step:
            self._kept.pop()

    def state_dict(self) -> dict[str, Any]:
        """Give what is kept as plain arrays."""
        shape = () if self._layers is None else (self._layers,)
        count = len(self._kept)
        values, known = np.zeros((count, *shape), np.float32), np.ones((count, *shape), np.bool_)
        for row, (_, reading) in enumerate(self._kept):
            values[row], known[row] = reading if isinstance(reading, Vector) else (reading, True)
        return {
            "steps": np.array([step for step, _ in self._kept], np.int64),
            "values": values,
            "known": known,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another kept; ValueError if it had another shape."""
        shape = () if self._layers is None else (self._layers,)
        values: NDArray[np.float32] = np.asarray(state["values"], np.float32)
        if values.shape[1:] != shape:
            raise ValueError(f"readings: expected some of shape {shape}, got {values.shape[1:]}")
        rows = zip(state["steps"].tolist(), values, state["known"], strict=True)
        self._kept.clear()
        self._kept.extend(
            (step, float(row) if self._layers is None else Vector(row, there)) for step, row, there in rows
        )


def _at(reading: Vector | float, layer: int | None) -> tuple[float, bool]:
    if not isinstance(reading, Vector):
        return reading, True
    return float(reading.values[layer]), bool(reading.known[layer])
