"""Numbers and truths with absence, for all layers at once: three-valued logic and the folds over layers.

A value has the shape () for the run or (layers,) for all layers. What is not known was not measured. A NaN
that is known was measured, and makes every comparison unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Value(NamedTuple):
    """A number or a truth, and where it is known.

    The data of numbers are float64. The data of truths are bool, and False where they are not known.
    """

    data: NDArray[Any]
    known: Mask


def number(data: NDArray[Any] | np.float64, known: Mask | np.bool_) -> Value:
    """Make a value of one number, or of one number for each layer."""
    return Value(np.asarray(data, np.float64), np.asarray(known, np.bool_))


def _truth(data: np.bool_, known: np.bool_) -> Value:
    return Value(np.asarray(data), np.asarray(known))


ABSENT = number(np.float64(np.nan), np.False_)
"""A number of the run that was not measured."""


def constant(value: float) -> Value:
    """Make the value of a literal."""
    return number(np.float64(value), np.True_)


def arithmetic(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """Combine two numbers by IEEE rules; known where both are."""
    return Value(operation(left.data, right.data), left.known & right.known)


def negative(value: Value) -> Value:
    """Change the sign."""
    return Value(-value.data, value.known)


def compare(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """Compare two numbers; unknown where either is absent or NaN."""
    known = left.known & right.known & ~(np.isnan(left.data) | np.isnan(right.data))
    return Value(operation(left.data, right.data) & known, known)


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


def absolute(value: Value) -> Value:
    """Drop the sign."""
    return Value(np.abs(value.data), value.known)


def fold(operation: Callable[[Value, Value], Value], values: Sequence[Value]) -> Value:
    """Combine values from left to right."""
    result = values[0]
    for value in values[1:]:
        result = operation(result, value)
    return result


def readings(value: Value) -> Array:
    """Turn a value into what a window keeps: NaN where nothing was known, truths as 1.0 and 0.0."""
    return np.where(value.known, value.data, np.nan)


# Folds over layers. Layers outside the mask or not known do not count, and a fold of none is unknown.


def share(value: Value, mask: Mask) -> Value:
    """Give the share of the known layers at which it holds."""
    seen = int(np.count_nonzero(value.known & mask))
    holds = int(np.count_nonzero(value.data & mask))
    return number(np.float64(holds / seen if seen else np.nan), np.bool_(seen > 0))


def count(value: Value, mask: Mask) -> Value:
    """Count the layers at which it holds."""
    return number(np.float64(np.count_nonzero(value.data & mask)), np.any(value.known & mask))


def any_layer(value: Value, mask: Mask) -> Value:
    """Tell whether it holds at one known layer or more."""
    return _truth(np.any(value.data & mask), np.any(value.known & mask))


def all_layers(value: Value, mask: Mask) -> Value:
    """Tell whether it holds at every known layer."""
    seen = value.known & mask
    some = np.any(seen)
    return _truth(some & ~np.any(seen & ~value.data), some)


def pick(value: Value, index: int | None) -> Value:
    """Take the number of one layer; absent for None."""
    return ABSENT if index is None else Value(value.data[index], value.known[index])


def first_index(value: Value, mask: Mask) -> int | None:
    """Find the first known layer in depth order."""
    seen = np.flatnonzero(value.known & mask)
    return int(seen[0]) if seen.size else None


def last_index(value: Value, mask: Mask) -> int | None:
    """Find the last known layer in depth order."""
    seen = np.flatnonzero(value.known & mask)
    return int(seen[-1]) if seen.size else None


def worst_index(value: Value, mask: Mask) -> int | None:
    """Find the layer with the largest known number; a NaN is never the largest."""
    seen = np.flatnonzero(value.known & mask & ~np.isnan(value.data))
    return int(seen[np.argmax(value.data[seen])]) if seen.size else None
