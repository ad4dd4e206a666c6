"""From the numbers of rows and parameters to the vectors of a Frame: small, on the host, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepguard.collect.parameters import ParameterNumbers
from stepguard.signals import HIST_BINS, Frame, Vector

Numbers = NDArray[np.float64]
Places = Sequence[int] | NDArray[np.intp]

WEIGHT_SIGNALS = ("weight.norm", "weight.rms", "weight.absmax", "weight.nonfinite")
GRAD_SIGNALS = ("grad.norm", "grad.rms", "grad.absmax", "grad.zero", "grad.nonfinite")
_SOME_LAYERS_ONLY = ("act.saturated", "act.variation")
"""Signals that some layers cannot have: an unbounded activation, a batch of one. NaN means absence there."""


class Framer:
    """Fills the vectors of one frame at a time, of a fixed number of layers."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._blocks: dict[Sequence[str], tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
        self._hist: NDArray[np.int32] | None = None

    def fill(self, signals: Sequence[str], places: Places, values: Numbers) -> None:
        """Put values of shape [signals, places] at these layers; the same signals always come together."""
        block = self._blocks.get(signals)
        if block is None:
            shape = len(signals), self._layers
            block = self._blocks[signals] = np.full(shape, np.nan, np.float32), np.zeros(shape, np.bool_)
        numbers, known = block
        with np.errstate(over="ignore"):
            numbers[:, places] = values
        known[:, places] = True
        for signal in _SOME_LAYERS_ONLY:
            if signal in signals:
                known[signals.index(signal)] = ~np.isnan(numbers[signals.index(signal)])

    def fill_hist(self, places: Places, hist: NDArray[np.int32]) -> None:
        """Put histograms of shape [places, bins] at these layers."""
        if self._hist is None:
            self._hist = np.zeros((self._layers, HIST_BINS + 1), dtype=np.int32)
        self._hist[places] = hist

    def finish(self, frame: Frame) -> Frame:
        """Move all that was put in into the frame."""
        for signals, (numbers, known) in self._blocks.items():
            frame.vectors.update(zip(signals, map(Vector, numbers, known), strict=True))
        frame.hist, self._hist, self._blocks = self._hist, None, {}
        return frame


class Membership:
    """Which parameters belong to which layers: a shared one to several, and then counted in each."""

    def __init__(self, pairs: Sequence[tuple[int, int]], layers: int) -> None:
        """`pairs` of (layer, parameter) by their places."""
        self._owners, self._members = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
        self._layers = layers
        self._owning = np.unique(self._owners)

    def owning(self, some: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """The layers that own parameters, or one of some; in depth order."""
        return self._owning if some is None or some.all() else np.unique(self._owners[some[self._members]])

    def total(self, values: Numbers) -> Numbers:
        """Sum over each layer's parameters, shape [layers]."""
        return np.bincount(self._owners, values[self._members], minlength=self._layers).astype(np.float64)

    def largest(self, values: Numbers) -> Numbers:
        """Largest over each layer's parameters, at least 0; NaN if one is. Shape [layers]."""
        result = np.zeros(self._layers)
        np.maximum.at(result, self._owners, values[self._members])
        return result


def weight_signals(members: Membership, n: ParameterNumbers) -> Numbers:
    """WEIGHT_SIGNALS of each layer, shape [signals, layers]; no meaning where a layer owns no parameter."""
    with np.errstate(all="ignore"):
        norm = np.sqrt(members.total(n.weight_norm**2))
        rms = norm / np.sqrt(members.total(n.numel))
        return np.array((norm, rms, members.largest(n.weight_absmax), members.total(n.weight_nonfinite)))


def grad_signals(members: Membership, n: ParameterNumbers, there: NDArray[np.bool_]) -> Numbers:
    """GRAD_SIGNALS of each layer over the parameters that are `there`, shape [signals, layers]."""

    def some(values: Numbers) -> Numbers:
        return np.where(there, values, 0.0)

    sizes = members.total(some(n.numel))
    with np.errstate(all="ignore"):
        norm = np.sqrt(members.total(some(n.grad_norm) ** 2))
        zero = members.total(some(n.grad_zero * n.numel)) / sizes
        largest, bad = members.largest(some(n.grad_absmax)), members.total(some(n.grad_nonfinite))
        return np.array((norm, norm / np.sqrt(sizes), largest, zero, bad))
