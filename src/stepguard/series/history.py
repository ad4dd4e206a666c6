"""The readings of the last steps, in ring buffers: constant memory, however long the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Window(NamedTuple):
    """Readings of one quantity over steps: k of them, each of shape `()` or `(layers,)`."""

    steps: NDArray[np.int64]
    """Shape (k,), ascending."""
    values: Array
    """Shape (k, *shape); NaN where there is no reading. A view into the buffer: do not write to it."""
    first: Array
    """Of the shape itself: the step of the first reading ever, inf where there is none yet."""

    def cut(self, step: int, n: int) -> Window:
        """The part of it at steps in `(step - n, step]`."""
        steps = self.steps
        if len(steps) and steps[0] > step - n and steps[-1] <= step:
            return self
        begin, end = np.searchsorted(steps, (step - n, step), side="right")
        return Window(self.steps[begin:end], self.values[begin:end], self.first)

    def full(self, step: int, n: int) -> NDArray[np.bool_]:
        """Where readings began at or before the first of the n steps that end at `step`."""
        return self.first <= step - n + 1

    def now(self, step: int) -> Array:
        """The reading at `step` itself, NaN where there is none."""
        values = self.cut(step, 1).values
        return values[0] if len(values) else np.full_like(self.first, np.nan)


class History:
    """Readings by key. A key is whatever text the caller likes: a signal's name, or an expression."""

    def __init__(self) -> None:
        self._rings: dict[str, _Ring] = {}

    def reserve(self, key: str, n: int, shape: tuple[int, ...]) -> None:
        """Make room for windows of up to `n` steps; of several reservations of a key the largest wins.

        Twice as much is kept, so that after a `rewind` by up to `n` steps the windows are full again.
        """
        ring = self._rings.get(key)
        if ring is None or ring.shape != shape:
            self._rings[key] = _Ring(n, shape)
        elif n > ring.room:
            self._rings[key] = _Ring.from_state({**ring.state_dict(), "room": n})

    def push(self, key: str, step: int, values: Array) -> Array | None:
        """Add what was read at `step`; what is not finite is no reading, and a push without any is dropped.

        Gives what was added, NaN where nothing was read; None for a push that was dropped.

        Raises KeyError for a key that was not reserved, ValueError for another shape than reserved or a
        step that is not after the last one.
        """
        ring = self._rings[key]
        if values.shape != ring.shape:
            raise ValueError(f"history of {key}: expected values of shape {ring.shape}, got {values.shape}")
        ring.expect_after(key, step)
        finite = np.isfinite(values)
        there = int(np.count_nonzero(finite))
        if not there:
            return None
        row = values if there == finite.size else np.where(finite, values, np.nan)
        ring.push(step, row, there)
        return row

    def push_number(self, key: str, step: int, value: float) -> None:
        """Add a finite number of the run, under a key that was reserved for `()`; ValueError as in `push`."""
        ring = self._rings[key]
        ring.expect_after(key, step)
        ring.push(step, value, 1)

    def extend(self, key: str, steps: NDArray[np.int64], values: Array) -> None:
        """Push many rows at once, of which each has a finite reading, NaN where there is none.

        Raises ValueError for steps that do not ascend from the last one on.
        """
        ring = self._rings[key]
        ring.expect_after(key, int(steps[0]))
        self._rings[key] = ring.extended(steps, values)

    def readings(self, key: str) -> tuple[NDArray[np.int64], Array]:
        """All steps and values that are kept, oldest first; do not write to them."""
        ring = self._rings[key]
        rows = ring.rows()
        return ring.steps[rows], ring.values[rows]

    def newest(self, key: str, step: int, n: int) -> float | None:
        """The last reading of a number of the run at steps in `(step - n, step]`."""
        ring = self._rings[key]
        place = ring.newest_place(step, n)
        return None if place is None else float(ring.values[place])

    def newest_row(self, key: str, step: int, n: int) -> Array | None:
        """The last reading of every layer at steps in `(step - n, step]`, where one row holds them all.

        None where there is no row, or where a layer that was read before has no reading in the last one.
        """
        ring = self._rings[key]
        place = ring.newest_place(step, n)
        return ring.values[place] if place is not None and ring.whole[place] else None

    def first_of_run(self, key: str) -> float:
        """The step of the first reading ever of a number of the run; inf where there is none yet."""
        return float(self._rings[key].first)

    def first(self, key: str) -> Array:
        """The step of the first reading ever, of the shape of a reading; inf where there is none yet."""
        return self._rings[key].first

    def silent(self, key: str, step: int, n: int) -> bool:
        """Whether there is no reading at steps after `step - n`."""
        ring = self._rings[key]
        return not ring.count or ring.newest <= step - n

    def window(self, key: str, step: int, n: int) -> Window:
        """The readings at steps in `(step - n, step]`.

        Raises KeyError for a key that was not reserved, ValueError for more steps than reserved.
        """
        ring = self._rings[key]
        if n > ring.room:
            raise ValueError(f"history of {key}: expected at most the {ring.room} steps reserved, got {n}")
        return ring.window(step, n)

    def rewind(self, step: int, now: int | None = None) -> None:
        """Forget every reading after `step`; with `now`, move those before so that the last stand at `now`.

        Where that leaves less than a window held before, the window counts as young again: `first` moves up.
        """
        for ring in self._rings.values():
            ring.rewind(step)
            if now is not None:
                ring.shift(now - step)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on from here, in plain numpy and Python containers."""
        return {key: ring.state_dict() for key, ring in self._rings.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`. Room reserved here stays; keys that it lacks begin anew."""
        rooms = {key: (ring.room, ring.shape) for key, ring in self._rings.items()}
        self._rings = {key: _Ring.from_state(saved) for key, saved in state.items()}
        for key, (room, shape) in rooms.items():
            self.reserve(key, room, shape)


def begun(first: Array, steps: NDArray[np.int64], values: Array) -> Array:
    """The steps of the first readings, once some rows are added."""
    there = ~np.isnan(values)
    return np.minimum(first, np.where(there.any(axis=0), steps[np.argmax(there, axis=0)], np.inf))


class _Ring:
    """Readings of one key: rows `start .. start + count` of a buffer that is moved to its front when full.

    The buffer is a quarter longer than what is kept, so a push copies five rows at most on average, and a
    window is one contiguous piece of it.
    """

    def __init__(self, room: int, shape: tuple[int, ...]) -> None:
        self.room, self.shape = room, shape
        self.keep = 2 * room
        self.start = self.count = 0
        self.newest = -1
        """The step of the last row, if there is one."""
        self.lost: int | None = None
        """The step of the newest reading that had to give way to newer ones."""
        self.first: Array = np.full(shape, np.inf)
        self.size, self.begun = self.first.size, 0
        """How many places there are, and how many have had a reading."""
        rows = self.keep + self.keep // 4 + 1
        self.steps = np.empty(rows, np.int64)
        self.values = np.empty((rows, *shape))
        self.whole = np.zeros(rows, np.bool_)
        """Whether a row surely has a reading at every place that had one by then."""

    def expect_after(self, key: str, step: int) -> None:
        if self.count and step <= self.newest:
            raise ValueError(f"history of {key}: expected a step after {self.newest}, got {step}")

    def push(self, step: int, values: Array | float, there: int) -> None:
        """Add a row in which so many places have a reading."""
        if self.start + self.count == len(self.steps):
            self._move_to_front()
        end = self.start + self.count
        self.steps[end], self.values[end] = step, values
        if self.begun < self.size:
            begins = np.isinf(self.first) & ~np.isnan(values)
            if np.count_nonzero(begins):
                self.begin(np.where(begins, step, self.first))
        self.whole[end], self.newest = there == self.begun, step
        if self.count == self.keep:
            self.lost = int(self.steps[self.start])
            self.start += 1
        else:
            self.count += 1

    def extended(self, steps: NDArray[np.int64], values: Array) -> _Ring:
        """A ring that holds these rows as well."""
        first = begun(self.first, steps, values)
        rows = self.rows()
        steps, values = np.concatenate((self.steps[rows], steps)), np.concatenate((self.values[rows], values))
        over = max(len(steps) - self.keep, 0)
        return _Ring.from_state(
            {
                "room": self.room,
                "lost": int(steps[over - 1]) if over else self.lost,
                "first": first,
                "steps": steps[over:],
                "values": values[over:],
            }
        )

    def begin(self, first: Array) -> None:
        self.first = first
        self.begun = int(np.count_nonzero(np.isfinite(first)))

    def newest_place(self, step: int, n: int) -> int | None:
        """The row of the last reading at steps in `(step - n, step]`."""
        place = self.start + self.count - 1
        if self.count and self.newest > step:
            place = self.start + int(self.steps[self.rows()].searchsorted(step, side="right")) - 1
        return place if place >= self.start and self.steps[place] > step - n else None

    def _note_newest(self) -> None:
        self.newest = int(self.steps[self.start + self.count - 1]) if self.count else -1

    def _move_to_front(self) -> None:
        kept = self.rows()
        self.steps[: self.count] = self.steps[kept]
        self.values[: self.count] = self.values[kept]
        self.whole[: self.count] = self.whole[kept]
        self.start = 0

    def rows(self) -> slice:
        return slice(self.start, self.start + self.count)

    def window(self, step: int, n: int) -> Window:
        begin, end = self.start, self.start + self.count
        steps = self.steps[begin:end]
        if self.count and self.newest > step:
            end = begin + int(steps.searchsorted(step, side="right"))
        if self.count and steps[0] <= step - n:
            begin += int(steps.searchsorted(step - n, side="right"))
        return Window(self.steps[begin:end], self.values[begin:end], self.first)

    def rewind(self, step: int) -> None:
        self.count = int(np.searchsorted(self.steps[self.rows()], step, side="right"))
        self._note_newest()
        self.begin(np.where(self.first > step, np.inf, self.first))
        if self.lost is None:
            return
        # What gave way is gone: the readings begin where those that are left do.
        oldest = self.steps[self.start] if self.count else np.inf
        self.begin(np.where(self.first <= self.lost, oldest, self.first))
        self.lost = self.lost if self.count else None

    def shift(self, steps: int) -> None:
        self.steps[self.rows()] += steps
        self._note_newest()
        self.first = self.first + steps
        if self.lost is not None:
            self.lost += steps

    def state_dict(self) -> dict[str, Any]:
        rows = self.rows()
        return {
            "room": self.room,
            "lost": self.lost,
            "first": np.array(self.first),
            "steps": np.array(self.steps[rows]),
            "values": np.array(self.values[rows]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Ring:
        ring = cls(state["room"], state["first"].shape)
        ring.begin(np.array(state["first"]))
        ring.lost, ring.count = state["lost"], len(state["steps"])
        ring.steps[: ring.count], ring.values[: ring.count] = state["steps"], state["values"]
        ring._note_newest()
        missing = np.isnan(state["values"]) & np.isfinite(ring.first)
        ring.whole[: ring.count] = ~missing.any(axis=tuple(range(1, missing.ndim)))
        return ring
