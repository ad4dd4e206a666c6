"""What tells at nearly every step, for next to nothing, that a condition does not hold.

Two screens stand before the evaluation of a condition. The first knows only which signals a frame has, the
second looks at values, and asks the bounds of detectors in place of the detectors themselves. Both may say
"it may hold" where it does not, but never the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from operator import and_, or_
from typing import Any

import numpy as np

from stepguard.rules.circuit import Circuit
from stepguard.rules.functions import FUNCTIONS, Detector, OverSteps
from stepguard.rules.operators import COMPARISONS
from stepguard.rules.tree import CLOCKS, Call, Constant, Node, Operation, Read, walk
from stepguard.rules.values import Mask
from stepguard.series.running import BelowBound, Largest
from stepguard.signals import Vector

_NEEDS_NOW = frozenset({"delta", "growth", "zscore", "crash", "spike"})
"""Functions over steps that are unknown without a reading now."""
_TOLD_BY_VALUES = frozenset({"<", "<=", ">", ">=", "=="})
_AT_MOST = frozenset({"median", "min", "max"})
"""Functions over steps whose result is at most the largest of the last n readings."""
_LAYERS = 10
"""Times as long as a window of the run takes one of all layers."""
_ABOVE = {">": lambda bound: bound >= 0, ">=": lambda bound: bound > 0}


def surely_unknown(node: Node, signals: Set[str]) -> bool:
    """Whether a part of a condition has no value at a step at which only these signals were measured."""
    match node:
        case Read():
            return node.text not in signals and node.text not in CLOCKS
        case Operation():
            parts = (surely_unknown(part, signals) for part in node.parts)
            return all(parts) if node.operator in {"and", "or"} else any(parts)
        case Call(function="sure"):
            return False
        case Call():
            over_steps = isinstance(FUNCTIONS[node.function], OverSteps | Detector)
            return (not over_steps or node.function in _NEEDS_NOW) and surely_unknown(node.argument, signals)
        case _:
            return False


def surely_not_true(node: Node, signals: Set[str]) -> bool:
    """Whether a truth does not hold at a step at which only these signals were measured."""
    if isinstance(node, Operation) and node.operator in {"and", "or"}:
        parts = (surely_not_true(part, signals) for part in node.parts)
        return any(parts) if node.operator == "and" else all(parts)
    if isinstance(node, Call) and node.function == "any":
        return surely_not_true(node.argument, signals)
    return surely_unknown(node, signals)


class Screens:
    """Makes the second screen of conditions: functions without arguments, to be called once a frame was fed.

    What the evaluation raises, they may raise.
    """

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit

    def of(self, root: Node, mask: Mask) -> Callable[[], bool]:
        """Give the screen of a whole condition: whether it may hold, of the run or at a layer of the mask."""
        return self._at_a_layer(root, mask) if root.kind.vector else self._screen(root, mask)

    def _screen(self, node: Node, mask: Mask) -> Callable[[], Any]:
        """The screen of a truth; of one per layer it gives an array, or one truth for all of them."""
        match node:
            case Operation(operator="and"):
                return self._joined(node, mask, and_, end=False)
            case Operation(operator="or"):
                return self._joined(node, mask, or_, end=True)
            case Operation(operator=operator, parts=(left, Constant() as right)) if (
                operator in _TOLD_BY_VALUES
            ):
                return self._threshold(node, left, operator, right.value, mask)
            case Call(function="any" | "all"):
                return self._at_a_layer(node.argument, mask)
            case Call():
                return self._bound(node, mask)
            case _:
                return self._itself(node, mask)

    def _itself(self, node: Node, mask: Mask) -> Callable[[], Any]:
        get = self._circuit.value(node, mask)
        if not node.kind.vector:
            return lambda: get() is True

        return lambda: get().data  # False where it is not known

    def _joined(
        self, node: Node, mask: Mask, join: Callable[[Any, Any], Any], *, end: bool
    ) -> Callable[[], Any]:
        """Join the parts until one truth for all decides it: the one that did last, then cheap ones first."""
        screens = [self._screen(part, mask) for part in sorted(node.parts, key=cost)]

        def holds() -> Any:
            found: Any = not end
            for place, screen in enumerate(screens):
                found = join(found, screen())
                if found is end:
                    if place:
                        screens.insert(0, screens.pop(place))
                    break
            return found

        return holds

    def _at_a_layer(self, node: Node, mask: Mask) -> Callable[[], bool]:
        screen, everywhere = self._screen(node, mask), bool(mask.all())

        def holds() -> bool:
            found = screen()
            if isinstance(found, bool):
                return found
            return bool(np.count_nonzero(found if everywhere else found & mask))

        return holds

    def _threshold(
        self, node: Node, left: Node, operator: str, bound: float, mask: Mask
    ) -> Callable[[], Any]:
        if isinstance(left, Read) and left.kind.vector:
            return self._layers_beyond(left.text, operator, bound)
        if isinstance(left, Call) and left.kind.vector and left.function in _AT_MOST and operator in _ABOVE:
            return self._largest_beyond(left, operator, bound, mask)
        window = _all_below(node)
        if window is not None:
            return self._all_below(node, window, bound, mask)
        counted = isinstance(left, Call) and left.function in {"share", "count"}
        if counted and operator in _ABOVE and _ABOVE[operator](bound):
            return self._at_a_layer(left.parts[0], mask)
        return self._itself(node, mask)

    def _layers_beyond(self, name: str, operator: str, bound: float) -> Callable[[], Any]:
        circuit, compare = self._circuit, COMPARISONS[operator]
        # An array, since numpy would round a number to the float32 of the signal.
        bounds = np.array([bound])
        last: Vector | None = None
        result: Any = False

        def holds() -> Any:
            nonlocal last, result
            vector = circuit.frame.vectors.get(name)
            if vector is None:
                return False
            if vector is not last:  # many frames share one in which nothing is wrong
                if vector.values.shape != (circuit.layers,):
                    circuit.read_layers(name)  # raises
                last, result = vector, compare(vector.values, bounds) & vector.known
            return result

        return holds

    def _largest_beyond(self, window: Call, operator: str, bound: float, mask: Mask) -> Callable[[], Any]:
        """Of a window that gives nothing above its largest reading: where that is not beyond, it is not."""
        compare, argument = COMPARISONS[operator], self._circuit.cell(window.argument, mask)
        make = partial(Largest, int(window.settings["n"]), self._circuit.layers)
        largest = self._circuit.running(window, mask, make)

        def holds() -> Any:
            argument.get()  # raises what went wrong inside it
            return compare(largest().get(), bound)

        return holds

    def _all_below(self, node: Node, window: Call, bound: float, mask: Mask) -> Callable[[], Any]:
        """Of the largest reading of all layers in a window: where that of one layer is above, it is not."""
        itself, argument = self._itself(node, mask), self._circuit.cell(window.argument, mask)
        make = partial(BelowBound, int(window.settings["n"]), bound, mask)
        below, circuit = self._circuit.running(window, mask, make), self._circuit

        def holds() -> Any:
            argument.get()  # raises what went wrong inside it
            return below().may_hold(circuit.frame.step) and itself()

        return holds

    def _bound(self, node: Call, mask: Mask) -> Callable[[], Any]:
        itself, circuit = self._itself(node, mask), self._circuit
        may_hold = circuit.may_hold(node, mask)
        if may_hold is None:
            return itself
        argument = circuit.cell(node.argument, mask)

        def holds() -> Any:
            argument.get()  # raises what went wrong inside it
            return may_hold(circuit.frame.step)

        return holds


def _all_below(node: Node) -> Call | None:
    """The window of `worst(max(x, n)) < number`; None of another node."""
    match node:
        case Operation(operator="<" | "<=", parts=(Call(function="worst", parts=(window,)), Constant())):
            return window if isinstance(window, Call) and window.function == "max" else None
        case _:
            return None


def cost(node: Node) -> tuple[bool, int]:
    """Orders the parts of logic: those of the run first, and of these what takes little."""
    if _all_below(node) is not None:
        return False, 0  # its bound tells
    return node.kind.vector, sum(map(_work, walk(node)))


def _work(node: Node) -> int:
    match node:
        case Call(function=name) if isinstance(FUNCTIONS[name], OverSteps | Detector):
            return _LAYERS if node.kind.vector else 1
        case Call() | Read():
            return int(isinstance(node, Call) or node.kind.vector)
        case _:
            return 0
