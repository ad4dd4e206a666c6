"""Numbers and truths with absence, for all layers at once: three-valued logic and the folds over layers.

What is one for each layer is a `Value`; what is one for the run is a plain number or truth, since numpy takes
twenty times as long for a single one. What is not known was not measured. A NaN that is known was measured,
and makes every comparison unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


Scalar: TypeAlias = "float | bool | None"
"""A number or a truth of the run; None where it is not known."""


class Value(NamedTuple):
    """A number or a truth for each layer, and where it is known.

    The data of numbers are float64. The data of truths are bool, and False where they are not known.
    """

    data: NDArray[Any]
    """Of shape (layers,), or () for one of the run beside them."""
    known: Mask


_NO_NUMBER = Value(np.asarray(np.nan), np.asarray(False))
_NO_TRUTH = Value(np.asarray(False), np.asarray(False))


def number(data: NDArray[Any], known: Mask) -> Value:
    """Make a value of one number for each layer."""
    return Value(np.asarray(data, np.float64), np.asarray(known, np.bool_))


def spread(scalar: Scalar, *, truth: bool) -> Value:
    """Set a number or a truth of the run beside those of the layers."""
    if scalar is None:
        return _NO_TRUTH if truth else _NO_NUMBER
    return Value(np.asarray(scalar, np.bool_ if truth else np.float64), np.asarray(True))


def arithmetic(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """Combine two numbers by IEEE rules; known where both are."""
    return Value(operation(left.data, right.data), left.known & right.known)


def negative(value: Value) -> Value:
    """Change the sign."""
    return Value(-value.data, value.known)


def compare(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """Compare two numbers; unknown where either is absent or NaN."""
    known = left.known & (left.data == left.data)  # NaN does not equal itself
    if right.data.ndim or not right.known or np.isnan(right.data):
        known = known & right.known & (right.data == right.data)
    return Value(operation(left.data, right.data) & known, known)


def compare_with(operation: Callable[[Any, Any], Any], left: Value, number: float) -> Value:
    """Compare numbers with one that is written down and is not NaN."""
    known = left.known & (left.data == left.data)
    return Value(operation(left.data, number) & known, known)


def both(left: Value, right: Value) -> Value:
    """Kleene's and: false as soon as one is false, whatever the other."""
    false = (left.known & ~left.data) | (right.known & ~right.data)
    return Value(left.data & right.data, (left.known & right.known) | false)


def either(left: Value, right: Value) -> Value:
    """Kleene's or: true as soon as one is true, whatever the other."""
    true = left.data | right.data
    return Value(true, (left.known & right.known) | true)


def negation(value: Value) -> Value:
    """Kleene's not: what is unknown stays unknown."""
    return Value(value.known & ~value.data, value.known)


def nonfinite(value: Value) -> Value:
    """Tell NaN and infinity from numbers, where something was measured."""
    return Value(value.known & ~np.isfinite(value.data), value.known)


def sure(value: Value) -> Value:
    """Take what is unknown for false."""
    return Value(value.known & value.data, np.ones_like(value.known))


def absolute(value: Value) -> Value:
    """Drop the sign."""
    return Value(np.abs(value.data), value.known)


def fold(operation: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    """Combine values from left to right."""
    result = values[0]
    for value in values[1:]:
        result = operation(result, value)
    return result


def readings(value: Value) -> Array | None:
    """Turn a value into what a window keeps: NaN where nothing was known, truths as 1.0 and 0.0.

    None where nothing is known at all.
    """
    known = np.count_nonzero(value.known)
    if known == value.known.size and value.data.dtype == np.float64:
        return value.data
    return np.where(value.known, value.data, np.nan) if known else None


# The same for one of the run.


def compare_of_run(operation: Callable[[Any, Any], Any], left: Scalar, right: Scalar) -> Scalar:
    """Compare two numbers; unknown where either is absent or NaN."""
    if left is None or right is None or math.isnan(left) or math.isnan(right):
        return None
    return operation(left, right)


def compare_with_of_run(operation: Callable[[Any, Any], Any], left: Scalar, number: float) -> Scalar:
    """Compare a number with one that is written down and is not NaN."""
    return None if left is None or math.isnan(left) else operation(left, number)


def quotient(left: float, right: float) -> float:
    """Divide two numbers by IEEE rules."""
    return left / right if right else float(np.true_divide(left, right))


def arithmetic_of_run(operation: Callable[[Any, Any], Any], left: Scalar, right: Scalar) -> Scalar:
    """Combine two numbers by IEEE rules; known where both are."""
    return None if left is None or right is None else float(operation(left, right))


def both_of_run(left: Scalar, right: Scalar) -> Scalar:
    """Kleene's and."""
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def either_of_run(left: Scalar, right: Scalar) -> Scalar:
    """Kleene's or."""
    if left is True or right is True:
        return True
    return None if left is None or right is None else False


def negative_of_run(value: Scalar) -> Scalar:
    """Change the sign."""
    return None if value is None else -value


def negation_of_run(value: Scalar) -> Scalar:
    """Kleene's not."""
    return None if value is None else not value


def nonfinite_of_run(value: Scalar) -> Scalar:
    """Tell NaN and infinity from numbers."""
    return None if value is None else not math.isfinite(value)


def sure_of_run(value: Scalar) -> Scalar:
    """Take what is unknown for false."""
    return value is True


def absolute_of_run(value: Scalar) -> Scalar:
    """Drop the sign."""
    return None if value is None else abs(value)


# Folds over layers. Layers outside the mask or not known do not count, and a fold of none is unknown.


def share(value: Value, mask: Mask) -> Scalar:
    """Give the share of the layers at which it holds, of those at which it is known.

    Layers that the rule's filter leaves out, and those at which nothing was measured, count neither above nor
    below the line; where none is left there is no value, and no alert. The layers at which it holds are the
    alert's evidence. A threshold on it means the same for a network of 5 layers and for one of 500, as one on
    `count` does not. Where the readings of layers err independently, a share of half of them errs far more
    seldom than `any` does.

    Source: fast.ai, From deep learning foundations to stable diffusion, lesson 16, which looks at all layers
    side by side.
    """
    seen = int(np.count_nonzero(value.known & mask))
    return int(np.count_nonzero(value.data & mask)) / seen if seen else None


def count(value: Value, mask: Mask) -> Scalar:
    """Count the layers at which it holds, of those at which it is known; no value where there is none.

    For conditions that should need more than one layer, whatever the size of the network: `count(x) >= 2`.
    """
    return float(np.count_nonzero(value.data & mask)) if np.count_nonzero(value.known & mask) else None


def any_layer(value: Value, mask: Mask) -> Scalar:
    """Tell whether it holds at one known layer or more; no value where there is none.

    Of many layers that err now and then, one nearly always does: fit for what is certain, as NaN is.
    """
    return bool(np.count_nonzero(value.data & mask)) if np.count_nonzero(value.known & mask) else None


def all_layers(value: Value, mask: Mask) -> Scalar:
    """Tell whether it holds at every known layer; no value where there is none."""
    seen = np.count_nonzero(value.known & mask)
    return bool(np.count_nonzero(value.data & mask) == seen) if seen else None


def pick(value: Value, index: int | None) -> Scalar:
    """Take the number of one layer; absent for None."""
    return float(value.data[index]) if index is not None and value.known[index] else None


def first_index(value: Value, mask: Mask) -> int | None:
    """Find the first known layer in depth order, the one next to the input.

    Depth is the order in which the layers ran in the first forward pass. Against the last one it tells how a
    signal changes on its way: `first(grad.norm) / last(grad.norm)`.
    """
    return _first(value.known & mask)


def last_index(value: Value, mask: Mask) -> int | None:
    """Find the last known layer in depth order, the one next to the loss; depth is as for `first`."""
    behind = _first((value.known & mask)[::-1])
    return None if behind is None else len(mask) - 1 - behind


def _first(seen: Mask) -> int | None:
    place = int(seen.argmax()) if seen.size else 0
    return place if seen.size and seen[place] else None


def worst_index(value: Value, mask: Mask) -> int | None:
    """Find the layer with the largest known number; a NaN is never the largest.

    That layer is the alert's evidence. For the smallest one: `-worst(-x)`.
    """
    seen = np.flatnonzero(value.known & mask & ~np.isnan(value.data))
    return int(seen[np.argmax(value.data[seen])]) if seen.size else None
