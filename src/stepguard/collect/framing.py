"""From the numbers of rows and parameters to the vectors of a Frame: small, on the host, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stepguard.signals import HIST_BINS, Frame, Vector

Numbers = NDArray[np.float64]

_SOME_LAYERS_ONLY = ("act.saturated", "act.variation")
"""Signals that some layers cannot have: an unbounded activation, a batch of one. NaN means absence there."""


class Framer:
    """Fills frames of a fixed number of layers."""

    def __init__(self, layers: int) -> None:
        self._layers = layers

    def fill(
        self, frame: Frame, signal: str, places: Sequence[int] | NDArray[np.intp], values: Numbers
    ) -> None:
        """Put the values of some layers into a signal's vector."""
        vector = frame.vectors.get(signal)
        if vector is None:
            unknown = np.full(self._layers, np.nan, np.float32), np.zeros(self._layers, np.bool_)
            vector = frame.vectors[signal] = Vector(*unknown)
        with np.errstate(over="ignore"):
            vector.values[places] = values
        vector.known[places] = ~np.isnan(values) if signal in _SOME_LAYERS_ONLY else True

    def activations(
        self,
        frame: Frame,
        places: Sequence[int],
        found: Mapping[str, Numbers],
        hist: NDArray[np.int32],
    ) -> None:
        """Put the signals of outputs into the frame; row i of each belongs to layer places[i]."""
        for signal, values in found.items():
            self.fill(frame, signal, places, values)
        if frame.hist is None:
            frame.hist = np.zeros((self._layers, HIST_BINS + 1), dtype=np.int32)
        frame.hist[places] = hist


class Membership:
    """Which parameters belong to which layers: a shared one to several, and then counted in each."""

    def __init__(self, pairs: Sequence[tuple[int, int]], layers: int) -> None:
        """`pairs` of (layer, parameter) by their places."""
        self._owners, self._members = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
        self._layers = layers

    def total(self, values: Numbers) -> Numbers:
        """Sum over each layer's parameters, shape [layers]."""
        return np.bincount(self._owners, values[self._members], minlength=self._layers).astype(np.float64)

    def largest(self, values: Numbers) -> Numbers:
        """Largest over each layer's parameters, at least 0; NaN if one is. Shape [layers]."""
        result = np.zeros(self._layers)
        np.maximum.at(result, self._owners, values[self._members])
        return result


def weight_signals(
    members: Membership, *, numel: Numbers, norm: Numbers, absmax: Numbers, bad: Numbers
) -> dict[str, Numbers]:
    """`weight.*` of each layer; NaN where a layer has no parameters."""
    sizes = members.total(numel)
    with np.errstate(all="ignore"):
        total = np.sqrt(members.total(norm**2))
        return {
            "weight.norm": total,
            "weight.rms": total / np.sqrt(sizes),
            "weight.absmax": members.largest(absmax),
            "weight.nonfinite": members.total(bad),
        }


def grad_signals(
    members: Membership, *, numel: Numbers, norm: Numbers, absmax: Numbers, zero: Numbers, bad: Numbers
) -> dict[str, Numbers]:
    """`grad.*` of each layer, of those parameters for which `zero`, a share, is not NaN."""
    there = ~np.isnan(zero)

    def some(values: Numbers) -> Numbers:
        return np.where(there, values, 0.0)

    sizes = members.total(some(numel))
    with np.errstate(all="ignore"):
        total = np.sqrt(members.total(some(norm) ** 2))
        return {
            "grad.norm": total,
            "grad.rms": total / np.sqrt(sizes),
            "grad.absmax": members.largest(some(absmax)),
            "grad.zero": members.total(some(zero * numel)) / sizes,
            "grad.nonfinite": members.total(some(bad)),
        }
