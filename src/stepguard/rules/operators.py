"""What operators do, to values per layer and to numbers of the run, as functions of what gives the parts."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepguard.rules import values
from stepguard.rules.values import Array, Scalar, Value

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
    "**": np.power,
}
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
"""What the operators of comparison do, to arrays and to numbers."""
_LOGIC = {"and": values.both, "or": values.either}
_LOGIC_OF_RUN = {"and": values.both_of_run, "or": values.either_of_run}
_UNARY = {"-": values.negative, "not": values.negation}
_UNARY_OF_RUN = {"-": values.negative_of_run, "not": values.negation_of_run}


def window_of_layers(compute: Callable[[], Array], *, truth: bool) -> Callable[[], Value]:
    """Make a value per layer of what a window gives: NaN is unknown, and 1.0 true."""

    def value() -> Value:
        data = compute()
        known = ~np.isnan(data)
        return Value((data == 1) & known if truth else data, known)

    return value


def window_of_run(compute: Callable[[], Array], *, truth: bool) -> Callable[[], Scalar]:
    """Make a number or truth of the run of what a window gives."""

    def value() -> Scalar:
        data = float(compute())
        if math.isnan(data):
            return None
        return data == 1 if truth else data

    return value


def of_layers(name: str, parts: Sequence[Callable[[], Value]]) -> Callable[[], Value]:
    """Apply an operator to values per layer."""
    if len(parts) == 1:
        unary, part = _UNARY[name], parts[0]
        return lambda: unary(part())
    if name in _LOGIC:
        logic = _LOGIC[name]
        return lambda: values.fold(logic, [part() for part in parts])
    left, right = parts
    if name in COMPARISONS:
        comparison = COMPARISONS[name]
        return lambda: values.compare(comparison, left(), right())
    arithmetic = _ARITHMETIC[name]
    return lambda: values.arithmetic(arithmetic, left(), right())


def of_run(name: str, parts: Sequence[Callable[[], Scalar]]) -> Callable[[], Scalar]:
    """Apply an operator to numbers or truths of the run."""
    if len(parts) == 1:
        unary, part = _UNARY_OF_RUN[name], parts[0]
        return lambda: unary(part())
    if name in _LOGIC_OF_RUN:
        logic = _LOGIC_OF_RUN[name]
        return lambda: values.fold(logic, [part() for part in parts])
    left, right = parts
    if name in COMPARISONS:
        comparison = COMPARISONS[name]
        return lambda: values.compare_of_run(comparison, left(), right())
    arithmetic = _ARITHMETIC[name]
    return lambda: values.arithmetic_of_run(arithmetic, left(), right())
