"""Which layers make a condition of the run true: those at which its inner truth holds, or those it picked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stepguard.rules.functions import FUNCTIONS, OverLayers, Pick
from stepguard.rules.tree import Call, Node, Operation
from stepguard.rules.values import Mask


class Witnesses:
    """Goes through a condition once, with the values of a step.

    Every part is asked for one side: a truth for being true or false, a number for being high or low. The
    layers behind `share(x) > 0.5` are those where x holds, those behind `share(x) < 0.5` where it does not.
    """

    def __init__(self, mask: Mask, get: Callable[[Node], Any]) -> None:
        self.seen = np.zeros_like(mask)
        self.layers = np.zeros_like(mask)
        self._mask = mask
        self._get = get

    def visit(self, node: Node, high: bool) -> None:
        """Add the layers behind this part."""
        match node:
            case Operation():
                for part, side in self._sides(node, high):
                    self.visit(part, side)
            case Call():
                self._call(node, high)
            case _:
                pass

    def _sides(self, node: Operation, high: bool) -> list[tuple[Node, bool]]:
        match node.operator:
            case "and" | "or":
                return [(part, high) for part in node.parts if self._is(part, high)]
            case "not":
                return [(node.parts[0], not high)]
            case "<" | "<=":
                return [(node.parts[0], not high), (node.parts[1], high)]
            case ">" | ">=" | "-" | "/" if len(node.parts) == 2:
                return [(node.parts[0], high), (node.parts[1], not high)]
            case "-":
                return [(node.parts[0], not high)]
            case _:
                return [(part, high) for part in node.parts]

    def _is(self, node: Node, wanted: bool) -> bool:
        return self._get(node) is wanted

    def _call(self, node: Call, high: bool) -> None:
        function = FUNCTIONS[node.function]
        if isinstance(function, OverLayers):
            value = self._get(node.argument)
            seen = value.known & self._mask
            self.seen |= seen
            self.layers |= seen & (value.data == high)
        elif isinstance(function, Pick):
            value = self._get(node.argument)
            self.seen |= value.known & self._mask
            index = function.index(value, self._mask)
            if index is not None:
                self.layers[index] = True
        else:
            self.visit(node.argument, high)
