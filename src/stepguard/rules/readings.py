"""The last readings of the signals that conditions are about: what a person is shown as evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.rules.values import Value

KEPT = 60
"""Readings that are kept of a signal."""


class Readings:
    """The last readings of one signal, of shape () or (layers,), NaN where one was not finite.

    The rings hold twice `KEPT`, and their second half moves to the front when they are full.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._steps = np.zeros(2 * KEPT, np.int64)
        self._values = np.zeros((2 * KEPT, *shape), np.float32)
        self._known = np.zeros((2 * KEPT, *shape), np.bool_)
        self._end = 0

    def push(self, step: int, value: Value) -> None:
        """Keep the reading of a step; nothing if nothing was measured."""
        if not value.known.any():
            return
        if self._end == len(self._steps):
            self._keep_half()
        self._steps[self._end] = step
        self._values[self._end] = np.where(np.isfinite(value.data), value.data, np.nan)
        self._known[self._end] = value.known
        self._end += 1

    def _keep_half(self) -> None:
        for ring in (self._steps, self._values, self._known):
            ring[:KEPT] = ring[KEPT:]
        self._end = KEPT

    def last(self, layer: int | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Give steps and values of the last readings, of one layer or of the run, oldest first."""
        begin = max(0, self._end - KEPT)
        at = (slice(begin, self._end),) if layer is None else (slice(begin, self._end), layer)
        known = self._known[at]
        steps: NDArray[np.int64] = self._steps[begin : self._end][known]
        return tuple(steps.tolist()), tuple(self._values[at][known].tolist())

    def rewind(self, step: int) -> None:
        """Forget the readings after a step."""
        self._end = int(np.searchsorted(self._steps[: self._end], step, side="right"))

    def state_dict(self) -> dict[str, Any]:
        """Give what is kept as plain arrays."""
        rings = {"steps": self._steps, "values": self._values, "known": self._known}
        return {name: np.array(ring[: self._end]) for name, ring in rings.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another kept; ValueError if it had another shape."""
        self._end = len(state["steps"])
        self._steps[: self._end] = state["steps"]
        self._values[: self._end] = state["values"]
        self._known[: self._end] = state["known"]
