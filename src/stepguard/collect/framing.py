"""From the numbers of rows and parameters to the vectors of a Frame: small, on the host, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stepguard.collect.parameters import ParameterNumbers
from stepguard.signals import HIST_BINS, Frame, Vector

Numbers = NDArray[np.float64]
Places = slice | NDArray[np.intp]

PARAMETER_SIGNALS = (
    *("weight.norm", "weight.rms", "weight.absmax", "weight.nonfinite", "update.ratio"),
    *("grad.norm", "grad.rms", "grad.absmax", "grad.zero", "grad.nonfinite", "optim.rms_ratio"),
)


class Framer:
    """Fills the vectors of one frame at a time, of a fixed number of layers."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._blocks: dict[Sequence[str], NDArray[np.float32]] = {}
        self._known: dict[Sequence[str], NDArray[np.bool_]] = {}
        self._hist: NDArray[np.int32] | None = None

    def fill(
        self, signals: Sequence[str], places: Places, values: Numbers, known: NDArray[np.bool_] | bool = True
    ) -> None:
        """Put values of shape [signals, places] at these layers; the same signals always come together.

        Where `known` is False nothing was measured.
        """
        if signals not in self._blocks:
            shape = len(signals), self._layers
            self._blocks[signals] = np.full(shape, np.nan, np.float32)
            self._known[signals] = np.zeros(shape, np.bool_)
        with np.errstate(over="ignore"):
            self._blocks[signals][:, places] = values
        self._known[signals][:, places] = known

    def fill_hist(self, places: Places, hist: NDArray[np.int32]) -> None:
        """Put histograms of shape [places, bins] at these layers."""
        if self._hist is None:
            self._hist = np.zeros((self._layers, HIST_BINS + 1), dtype=np.int32)
        self._hist[places] = hist

    def finish(self, frame: Frame) -> Frame:
        """Move all that was put in into the frame; a signal of no layer is left out."""
        for signals, block in self._blocks.items():
            known = self._known[signals]
            for i in map(int, np.flatnonzero(known.any(1))):
                frame.vectors[signals[i]] = Vector(block[i], known[i])
        frame.hist, self._hist, self._blocks = self._hist, None, {}
        return frame


class Seating:
    """Which rows of a buffer hold which layers."""

    def __init__(self, names: Sequence[str], rows: Sequence[int], layers: Mapping[str, int]) -> None:
        """`rows` of layers by their `names`, of which some may be no layers; `layers` by their places."""
        known = [(layers[name], row) for name, row in zip(names, rows, strict=True) if name in layers]
        self.any = bool(known)
        places, found = np.array(sorted(known), dtype=np.intp).reshape(-1, 2).T
        self.places, self.rows = _together(places), _together(found)


def _together(places: NDArray[np.intp]) -> Places:
    """A slice where the places stand together, since that needs no copy."""
    if len(places) and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


class Membership:
    """Which parameters belong to which layers: a shared one to several, and then counted in each."""

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        """`pairs` of (layer, parameter) by their places."""
        owners, self._members = np.array(sorted(pairs), dtype=np.intp).reshape(-1, 2).T
        self.layers, self._starts = np.unique(owners, return_index=True)
        """`layers` own parameters, in depth order."""
        self.places = _together(self.layers)

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


class Flags:
    """`grad.nonfinite` where of each gradient only is known whether it is finite: how many are not."""

    def __init__(self, members: Membership, layers: int) -> None:
        self._members, self._layers = members, layers
        self._fine: tuple[list[bool], Vector] | None = None
        """Which parameters had gradients the last time that all were finite, and what was said of them."""

    def put(self, frame: Frame, has_grad: list[bool], finite: Sequence[bool] = ()) -> None:
        """Say it in a frame; `finite` has the gradients that are there, and is left out where all are."""
        if not all(finite):
            bad = np.zeros(len(has_grad))
            bad[has_grad] = np.logical_not(finite)
            vector = self._vector(has_grad, bad)
        else:
            if self._fine is None or self._fine[0] != has_grad:
                self._fine = has_grad, self._vector(has_grad, np.zeros(len(has_grad)))
            vector = self._fine[1]
        if vector.known.any():
            frame.vectors["grad.nonfinite"] = vector

    def _vector(self, has_grad: list[bool], bad: Numbers) -> Vector:
        """Many frames may share it, so it is read-only."""
        known, values = np.zeros(self._layers, np.bool_), np.full(self._layers, np.nan, np.float32)
        known[self._members.with_any(np.array(has_grad, dtype=np.bool_))] = True
        if len(self._members.layers):
            values[self._members.layers] = self._members.total(bad)
        values[~known] = np.nan
        known.flags.writeable = values.flags.writeable = False
        return Vector(values, known)


def finite(frame: Frame) -> bool:
    """Whether the loss and all gradients are, where they are known."""
    return all(math.isfinite(frame.scalars.get(name, 0.0)) for name in ("loss", "grad_norm"))


def fill_parameters(framer: Framer, members: Membership, numbers: ParameterNumbers) -> None:
    """Fill in what was measured of each layer's parameters together."""
    if not len(members.layers):
        return
    absmax, absmax_of_grads = members.largest(numbers.largest)
    with np.errstate(all="ignore"):
        sums = members.total(numbers.sums)
        numel, weights, bad, updated, updates, there, *of_grads, compared, ratios = sums
        size, squares, bad_grads, zeros = of_grads
        norm, moved, norm_of_grads, ratio = np.sqrt((weights, updates, squares, ratios / compared))
        values = (
            *(norm, norm / np.sqrt(numel), absmax, bad, moved / norm),
            *(norm_of_grads, norm_of_grads / np.sqrt(size), absmax_of_grads, zeros / size, bad_grads, ratio),
        )
        reached, always = there > 0, numel > 0
        known = (*[always] * 4, (updated > 0) & (norm > 0), *[reached] * 5, compared > 0)
        framer.fill(PARAMETER_SIGNALS, members.places, np.array(values), np.array(known))
