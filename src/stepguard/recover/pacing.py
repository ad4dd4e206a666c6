"""How fast weights move, and how fast they should. Without torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stepguard.signals import Frame

LONG = 1000
"""Steps after which a training of unknown length counts as long."""
_SURE = 0.9999
"""Above this ratio nothing but the new update is left of the weights: how large it was is not known."""


def known(frame: Frame, signal: str) -> NDArray[np.float64]:
    """The values of the layers that have one, of shape (layers with a value,)."""
    vector = frame.vectors.get(signal)
    return np.empty(0) if vector is None else vector.values[vector.known].astype(np.float64)


def pace(frame: Frame) -> float:
    """The update of the median layer, relative to its weights; not finite counts as all of them."""
    found = known(frame, "update.ratio")
    return float(np.median(np.nan_to_num(found, nan=1.0, posinf=1.0))) if len(found) else 0.0


def undone(ratio: float) -> float:
    """Update relative to the weights before it, from the one relative to the weights after it.

    The two are at right angles, near enough, in so many dimensions.
    """
    ratio = min(ratio, _SURE)
    return ratio / math.sqrt(1.0 - ratio * ratio)


def annealed(step: int, total_steps: int | None) -> float:
    """The share of its pace that an attempt has at a step, 0..1.

    A pace that lasts would leave the weights restless (Bernstein et al. 2020, arXiv 2002.03432): all of it is
    there in the first half of the training, hardly any at last. Where the length is not known it falls with
    the root of the steps, as step sizes have to that suit any length (Nemirovski et al. 2009).
    """
    if total_steps is None:
        return 1.0 / math.sqrt(1.0 + step / LONG)
    return min(1.0, max(0.01, 2.0 * (1.0 - step / total_steps)))
