"""One frame for all ranks of a distributed training, so that the same rules decide the same on each.

Flow: in comes the frame of this rank, out comes that of the whole training: what is not finite on one rank is
not finite, counts are added, of largest values the largest is taken, and everything else, the loss first of
all, is the mean over the ranks that know it. Only what rules and remedies read is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stepguard.recover.ranks import Ranks, Rows
from stepguard.signals import SIGNALS, Frame, Layer, Vector

_QUIET = "grad.nonfinite"
"""The one signal per layer of a step that was not measured; nothing to tell where it is zero throughout."""

_TELLS = -1.0
"""Stands for vectors that are worth a second exchange."""


class Words(NamedTuple):
    """What a rank tells of itself with each frame. Of all ranks the largest counts."""

    stopping: float = 0.0
    """The signal that asked it to end; 0 for none."""
    due: float = 0.0
    """The step at which it would take its next snapshot."""
    interval: float = 0.0
    """Steps from one snapshot to the next."""
    candidate: float = -1.0
    """The step of its snapshot that waits to be certified; -1 for none."""


class Agreement:
    """Makes one frame of those of all ranks.

    `layers` are those of all ranks: of a model that is cut into stages each rank knows its own.

    Args:
        ranks: the other ranks.
        layers: the layers of this rank's frames.
        signals: what rules and remedies read.
    """

    def __init__(self, ranks: Ranks, layers: Sequence[Layer], signals: Iterable[str]) -> None:
        self._ranks = ranks
        own = [list(layer) for layer in layers]
        told: list[list[list[str]]] = ranks.gather("layers", own) or [own]
        self.layers = tuple(dict.fromkeys(Layer(*layer) for theirs in told for layer in theirs))
        self._alike = all(theirs == own for theirs in told)
        places = {layer: place for place, layer in enumerate(self.layers)}
        self._at = np.array([places[layer] for layer in layers], np.intp)
        names = sorted({*signals, "loss"})
        self._vectors = [name for name in names if name in SIGNALS and SIGNALS[name].per == "layer"]
        self._scalars = [name for name in names if name not in self._vectors]
        self.only: dict[str, list[int]] = {}
        """Signals of the run that are not finite on some ranks only in this frame, and on which."""

    def frame(self, own: Frame, words: Words) -> tuple[Frame, Words]:
        """The frame of all ranks, and what they say; this rank's own if they do not come together."""
        frame = own if self._alike else self._placed(own)
        self.only = {}
        values = np.array([frame.scalars.get(name, 0.0) for name in self._scalars])
        known = np.array([name in frame.scalars for name in self._scalars], np.float64)
        head = np.array([self._quiet(frame), *words])
        rows = self._ranks.exchange(np.concatenate([head, values, known]))
        if rows is None:
            return frame, words
        mixed = Frame(frame.step, dict(frame.scalars), dict(frame.vectors), frame.hist)
        self._mix_scalars(mixed, rows[:, len(head) :])
        if rows[0, 0] == _TELLS or (rows[:, 0] != rows[0, 0]).any():
            self._mix_vectors(mixed)
        return mixed, _largest(rows[:, 1 : len(head)])

    def _quiet(self, frame: Frame) -> float:
        """Where it is quiet, if the vectors tell nothing more than that; equal on ranks that need no more."""
        quiet = frame.vectors.get(_QUIET)
        if (
            not self._alike
            or frame.vectors.keys() - {_QUIET}
            or (quiet is not None and quiet.values[quiet.known].any())
        ):
            return _TELLS
        return 0.0 if quiet is None else 1.0 + crc32(quiet.known.tobytes())

    def _mix_scalars(self, frame: Frame, rows: Rows) -> None:
        count = len(self._scalars)
        for place, name in enumerate(self._scalars):
            knows = rows[:, count + place] > 0
            if not knows.any():
                continue
            values = rows[knows, place]
            frame.scalars[name] = float(_mixed(name, values[:, None], np.ones_like(values[:, None]))[0])
            bad = knows & ~np.isfinite(rows[:, place])
            if bad.any() and (bad != knows).any():
                self.only[name] = np.flatnonzero(bad).tolist()

    def _mix_vectors(self, frame: Frame) -> None:
        """Exchange the vectors, every one on every rank, whether it has it or not."""
        shape = (len(self._vectors), len(self.layers))
        values, known = np.zeros(shape), np.zeros(shape)
        for place, name in enumerate(self._vectors):
            if name in frame.vectors:
                values[place], known[place] = frame.vectors[name]
        values[known == 0] = 0.0
        rows = self._ranks.exchange(np.concatenate([values.ravel(), known.ravel()]))
        if rows is None:
            return
        cells = rows.reshape(len(rows), 2, *shape)
        for place, name in enumerate(self._vectors):
            there = cells[:, 1, place] > 0
            if there.any():
                mixed = _mixed(name, cells[:, 0, place], there.astype(np.float64))
                frame.vectors[name] = Vector(mixed.astype(np.float32), np.asarray(there.any(axis=0)))

    def _placed(self, frame: Frame) -> Frame:
        """The same frame with the layers of all ranks."""
        return replace(
            frame,
            vectors={name: self._spread(vector) for name, vector in frame.vectors.items()},
            hist=None if frame.hist is None else self._rows(frame.hist),
        )

    def _spread(self, vector: Vector) -> Vector:
        values = np.full(len(self.layers), np.nan, np.float32)
        known = np.zeros(len(self.layers), np.bool_)
        values[self._at], known[self._at] = vector
        return Vector(values, known)

    def _rows(self, hist: NDArray[np.int32]) -> NDArray[np.int32]:
        found = np.zeros((len(self.layers), hist.shape[1]), np.int32)
        found[self._at] = hist
        return found


def _largest(rows: Rows) -> Words:
    """Of the ranks' words the largest; a snapshot that not all have is none."""
    largest = Words(*rows.max(axis=0).tolist())
    waiting = rows[:, Words._fields.index("candidate")]
    return largest if (waiting == waiting[0]).all() else largest._replace(candidate=-1.0)


def _mixed(name: str, values: Rows, known: Rows) -> NDArray[np.float64]:
    """One value of those of all ranks, shape [ranks, cells]; NaN where none knows it."""
    there = known > 0
    # What is not finite spreads, as it does in the training.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if name.endswith(".nonfinite"):
            return np.where(there.any(axis=0), np.where(there, values, 0.0).sum(axis=0), np.nan)
        largest = np.where(there, values, -np.inf).max(axis=0)
        least = np.where(there, values, np.inf).min(axis=0)
        mean = np.where(there, values, 0.0).sum(axis=0) / there.sum(axis=0)
    # Equal values stay what they are, bit for bit.
    mixed = largest if name.endswith(".absmax") else np.where(largest == least, largest, mean)
    return np.where(there.any(axis=0), mixed, np.nan)
