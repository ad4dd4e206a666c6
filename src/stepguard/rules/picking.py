"""Functions that pick one layer; of a signal the first and the last without a value for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from stepguard.rules import values
from stepguard.rules.functions import Pick
from stepguard.rules.operators import unchanged
from stepguard.rules.tree import Node, Read
from stepguard.rules.values import Mask, Scalar, Value
from stepguard.signals import Vector

_ENDS = {"first": 1, "last": -1}
"""Functions that look from an end, and in which direction of depth they go."""
_NEAR = 16
"""Layers that are looked at one by one."""


def pick(
    function: Pick,
    node: Node,
    mask: Mask,
    argument: Callable[[], Value],
    vectors: Callable[[], Mapping[str, Vector]],
) -> Callable[[], Scalar]:
    """Give what picks the number of one layer.

    Args:
        function: which layer.
        node: what it is a number of.
        mask: the layers that a rule looks at.
        argument: gives the numbers of all layers.
        vectors: gives the signals of the step.
    """

    picked = unchanged(lambda value: values.pick(value, function.index(value, mask)), argument)
    if not isinstance(node, Read) or function.name not in _ENDS:
        return picked
    name = node.text
    places: list[int] = np.flatnonzero(mask)[:: _ENDS[function.name]][:_NEAR].tolist()

    def from_end() -> Scalar:
        vector = vectors().get(name)
        if vector is not None and vector.values.shape == mask.shape:
            for place in places:
                if vector.known[place]:
                    return float(vector.values[place])
        return picked()

    return from_end
