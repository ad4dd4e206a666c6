"""What operators do, to values per layer and to numbers of the run, as functions of what gives the parts."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from stepguard.rules import values
from stepguard.rules.values import Array, Scalar, Value

In = TypeVar("In")
Out = TypeVar("Out")

COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
"""What the operators of comparison do, to arrays and to numbers."""


class Operators(NamedTuple):
    """How operators work on one kind of value; those with two values take what does it first."""

    unary: Mapping[str, Callable[[Any], Any]]
    logic: Mapping[str, Callable[[Any, Any], Any]]
    compare: Callable[[Callable[[Any, Any], Any], Any, Any], Any]
    compare_with: Callable[[Callable[[Any, Any], Any], Any, float], Any]
    """The same, with a number that is written down."""
    arithmetic: Callable[[Callable[[Any, Any], Any], Any, Any], Any]
    functions: Mapping[str, Callable[[Any, Any], Any]]
    """What does the arithmetic by IEEE rules, by operator."""


ON_LAYERS = Operators(
    {"-": values.negative, "not": values.negation},
    {"and": values.both, "or": values.either},
    values.compare,
    values.compare_with,
    values.arithmetic,
    {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "**": np.power},
)
"""On values per layer."""
ON_RUN = Operators(
    {"-": values.negative_of_run, "not": values.negation_of_run},
    {"and": values.both_of_run, "or": values.either_of_run},
    values.compare_of_run,
    values.compare_with_of_run,
    values.arithmetic_of_run,
    {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": values.quotient, "**": np.power},
)
"""On numbers and truths of the run."""


def unchanged(function: Callable[[In], Out], argument: Callable[[], In]) -> Callable[[], Out]:
    """Apply a function to what changes from time to time; while it is the same object, so is the result."""
    last, result = object(), None

    def applied() -> Any:
        nonlocal last, result
        value = argument()
        if value is not last:
            result = function(value)
            last = value
        return result

    return applied


def window_of_layers(compute: Callable[[], Array], *, truth: bool) -> Callable[[], Value]:
    """Make a value per layer of what a window gives: NaN is unknown, and 1.0 true."""

    def value(data: Array) -> Value:
        known = ~np.isnan(data)
        return Value((data == 1) & known if truth else data, known)

    return unchanged(value, compute)


def window_of_run(compute: Callable[[], Array], *, truth: bool) -> Callable[[], Scalar]:
    """Make a number or truth of the run of what a window gives."""

    def value() -> Scalar:
        data = float(compute())
        if math.isnan(data):
            return None
        return data == 1 if truth else data

    return value


def operation(name: str, parts: Sequence[Callable[[], Any]], operators: Operators) -> Callable[[], Any]:
    """Apply an operator, by its name, to values of one kind."""
    if len(parts) == 1:
        unary, part = operators.unary[name], parts[0]
        return lambda: unary(part())
    if name in operators.logic:
        logic = operators.logic[name]
        return lambda: values.fold(logic, [part() for part in parts])
    left, right = parts
    if name in COMPARISONS:
        compare, comparison = operators.compare, COMPARISONS[name]
        return lambda: compare(comparison, left(), right())
    arithmetic, function = operators.arithmetic, operators.functions[name]
    return lambda: arithmetic(function, left(), right())


def arithmetic(name: str, left: float, right: float) -> float:
    """Do the arithmetic of an operator, by its name, with two numbers that are written down."""
    with np.errstate(all="ignore"):
        return float(ON_RUN.functions[name](left, right))


def comparison_with(
    name: str, part: Callable[[], Any], number: float, operators: Operators
) -> Callable[[], Any]:
    """Compare values of one kind with a number that is written down and is not NaN."""
    compare_with, comparison = operators.compare_with, COMPARISONS[name]
    return lambda: compare_with(comparison, part(), number)
