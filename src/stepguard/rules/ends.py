"""The first and the last layer at which a signal is known, without making a value for each layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stepguard.rules.values import Mask, Scalar
from stepguard.signals import Vector

ENDS = {"first": 1, "last": -1}
"""Functions that look from an end, and in which direction of depth they go."""
_NEAR = 16
"""Layers that are looked at one by one."""


def from_end(
    read: Callable[[], Vector | None], mask: Mask, way: int, otherwise: Callable[[], Scalar]
) -> Callable[[], Scalar]:
    """Give what gives a signal at the first known layer in a direction; `otherwise` where that is far."""
    places: list[int] = np.flatnonzero(mask)[::way][:_NEAR].tolist()

    def found() -> Scalar:
        vector = read()
        if vector is not None and vector.values.shape == mask.shape:
            for place in places:
                if vector.known[place]:
                    return float(vector.values[place])
        return otherwise()

    return found
