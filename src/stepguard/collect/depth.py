"""The depth of layers: the order of their calls, and where containers with parameters of their own belong.

The output of such a container comes after all of its children's, but its parameters may work before: an
embedding of positions, a token for the class. Autograd knows which.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from stepguard.collect.layers import Watched
from stepguard.signals import Layer

_MOST = 20_000
"""Nodes of a graph that are looked at, once, in a tenth of a second; in a larger one all is late."""


class Depth:
    """Layers in the order in which the first measured forward pass calls them.

    What it does not call, an expert that nothing was sent to or a block left out by lot, stands behind what
    was registered before it.
    """

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._registered = [item.layer for item in watched]
        names = {item.module: item.layer.name for item in watched}
        self._inside = {
            names[module]: {names[each] for each in module.modules() if each in names and each is not module}
            for module, own in ((item.module, item.parameters) for item in watched)
            if own and any(True for _ in module.children())
        }
        self._called: dict[str, Layer] = {}
        self._early: set[str] = set()

    def called(self, layer: Layer) -> None:
        """Note the call of a layer, or of what feeds one."""
        self._called.setdefault(layer.name, layer)

    def weigh(self, item: Watched, output: Tensor, measured: Collection[Any]) -> None:
        """See whether the parameters of a container work before what it holds.

        `measured` has the nodes of the graph that made the outputs measured before this one.
        """
        name = item.layer.name
        if self._inside.get(name) and _early(item, output, measured):
            self._early.add(name)

    def layers(self) -> list[Layer]:
        """All watched layers and what feeds them; early ones right behind the first of what they hold."""
        order = list(self._called)
        for name in [name for name in order if name in self._early]:
            first = next((place for place, each in enumerate(order) if each in self._inside[name]), None)
            if first is not None:
                order.remove(name)
                order.insert(first + 1, name)
        behind: dict[str | None, list[Layer]] = {}
        place: str | None = None
        for layer in self._registered:
            if layer.name in self._called:
                place = layer.name
            else:
                behind.setdefault(place, []).append(layer)
        layers = list(behind.get(None, ()))
        for name in order:
            layers += [self._called[name], *behind.get(name, ())]
        return layers


def _early(item: Watched, output: Tensor, measured: Collection[Any]) -> bool:
    """Whether its parameters reach its output only on ways that a measured output lies on."""
    own = {id(parameter) for parameter in item.parameters}
    near, behind = _met(own, [output.grad_fn], measured)
    return not near and _met(own, behind, ())[0]


def _met(own: Collection[int], start: Sequence[Any], measured: Collection[Any]) -> tuple[bool, list[Any]]:
    """Whether one of the parameters is met on the way back from nodes to those measured, and the latter."""
    pending, seen, ends = list(start), set[Any](), list[Any]()
    while pending and len(seen) < _MOST:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in measured:
            ends.append(node)
            continue
        if id(getattr(node, "variable", None)) in own:
            return True, ends
        pending.extend(each for each, _ in node.next_functions)
    return False, ends
