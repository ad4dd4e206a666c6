"""What is known when the causes of an alert are looked for: its evidence, and what the frames have told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepguard.rules.alert import Evidence
from stepguard.signals import Frame, Layer, Vector

_RECENT = 9
"""Losses that tell whether it was on its way out of bounds."""


class Site(NamedTuple):
    """A layer at which the alert fires."""

    depth: int
    """Its place among all watched layers, from 0."""
    layer: Layer
    value: float | None


class BadBatch(NamedTuple):
    """A batch that held numbers which are not finite."""

    step: int
    values: int
    """How many."""


@dataclass
class Past:
    """What the frames of an attempt have told by now, beside the readings that an alert shows."""

    frame: Frame
    """The newest."""
    loss: float | None = None
    """The first one."""
    recent: deque[float] = field(default_factory=lambda: deque[float](maxlen=_RECENT))
    """The last ones before the newest frame, of those that were finite."""
    bad_loss: int | None = None
    """The last step before the newest frame whose loss was not finite."""
    weights: Vector | None = None
    """The first `weight.norm` of the layers."""
    bad_batch: BadBatch | None = None
    """The last one that was bad."""
    reached: NDArray[np.bool_] | None = None
    """The layers that have had a gradient at some step; None before the first."""

    @classmethod
    def none(cls) -> Past:
        """Before the first frame."""
        return cls(Frame(0))

    def see(self, frame: Frame) -> None:
        """Take a frame in."""
        earlier = self.frame.scalars.get("loss")
        if earlier is not None and math.isfinite(earlier):
            self.recent.append(earlier)
        elif earlier is not None:
            self.bad_loss = self.frame.step
        self.frame = frame
        if self.loss is None:
            self.loss = frame.scalars.get("loss")
        self.weights = self.weights or frame.vectors.get("weight.norm")
        bad = frame.scalars.get("input.nonfinite", 0.0)
        if bad > 0:
            self.bad_batch = BadBatch(frame.step, int(bad))
        grads = frame.vectors.get("grad.nonfinite")
        if grads is not None:
            self.reached = grads.known if self.reached is None else self.reached | grads.known


@dataclass(frozen=True)
class Findings:
    """All that a cause may be read from."""

    evidence: Evidence
    """At the first layer concerned."""
    sites: Sequence[Site]
    """In depth order."""
    layers: Sequence[Layer]
    """All that are watched, in depth order."""
    past: Past

    @property
    def not_finite(self) -> bool:
        """Whether the alert is about numbers that are NaN or infinite."""
        evidence = self.evidence
        last = evidence.values[-1] if evidence.values else evidence.value
        return evidence.signal.endswith(".nonfinite") or (last is not None and not np.isfinite(last))

    def scalar(self, name: str) -> float | None:
        """A number of the newest frame; None where it was not measured."""
        return self.past.frame.scalars.get(name)

    def known(self, name: str) -> NDArray[np.bool_]:
        """The layers of which the newest frame has the signal."""
        vector = self.past.frame.vectors.get(name)
        return np.zeros(len(self.layers), np.bool_) if vector is None else vector.known

    def where(self, name: str, low: float, high: float = np.inf) -> list[int]:
        """The layers, in depth order, whose value is known and in `low..high`."""
        vector = self.past.frame.vectors.get(name)
        if vector is None:
            return []
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(vector.known & (vector.values >= low) & (vector.values <= high)).tolist()

    def value(self, name: str, place: int) -> float | None:
        """A layer's value in the newest frame; None where it was not measured."""
        vector = self.past.frame.vectors.get(name)
        return None if vector is None or not vector.known[place] else float(vector.values[place])
