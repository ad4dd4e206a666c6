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
UPDATE_SIGNALS = ("update.ratio",)
OPTIMIZER_SIGNALS = ("optim.rms_ratio",)
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

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        """`pairs` of (layer, parameter) by their places."""
        owners, self._members = np.array(sorted(pairs), dtype=np.intp).reshape(-1, 2).T
        self.layers, self._starts = np.unique(owners, return_index=True)
        """`layers` own parameters, in depth order."""

    def with_any(self, some: NDArray[np.bool_]) -> NDArray[np.intp]:
        """The layers that own one of some parameters, in depth order."""
        if not len(self.layers):
            return self.layers
        return self.layers[np.logical_or.reduceat(some[self._members], self._starts)]

    def total(self, values: Numbers) -> Numbers:
        """Sum over each layer's parameters of values of shape [..., parameters]."""
        return np.add.reduceat(values[..., self._members], self._starts, axis=-1)

    def largest(self, values: Numbers) -> Numbers:
        """Largest over each layer's parameters; NaN if one is."""
        return np.maximum.reduceat(values[..., self._members], self._starts, axis=-1)


def fill_parameters(framer: Framer, members: Membership, numbers: ParameterNumbers) -> None:
    """Fill in what was measured of each layer's parameters together."""
    if not len(members.layers):
        return
    largest = members.largest(numbers.largest)
    with np.errstate(all="ignore"):
        numel, weights, bad, updated, updates, there, *of_grads, compared, ratios = members.total(
            numbers.sums
        )
        norm = np.sqrt(weights)
        framer.fill(WEIGHT_SIGNALS, members.layers, np.array((norm, norm / np.sqrt(numel), largest[0], bad)))
        if (reached := there > 0).any():
            size, squares, bad, zeros = of_grads
            grads = np.sqrt(squares), np.sqrt(squares / size), largest[1], zeros / size, bad
            framer.fill(GRAD_SIGNALS, members.layers[reached], np.array(grads)[:, reached])
        if (moved := (updated > 0) & (norm > 0)).any():
            framer.fill(UPDATE_SIGNALS, members.layers[moved], np.sqrt(updates / weights)[None, moved])
        if (has := compared > 0).any():
            ratio = np.sqrt(ratios / compared)
            framer.fill(OPTIMIZER_SIGNALS, members.layers[has], ratio[None, has])
