"""Names, arity and types of a condition: from Python's syntax tree to a typed tree, with every fault."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence

from stepguard.rules import tree
from stepguard.rules.functions import (
    FUNCTIONS,
    LONGEST,
    Detector,
    Function,
    OverLayers,
    OverSteps,
    Pick,
)
from stepguard.rules.names import dotted, unknown_function, unknown_name
from stepguard.rules.operators import arithmetic
from stepguard.rules.setting import Setting
from stepguard.rules.syntax import MOST_FAULTS, ExpressionError, Fault
from stepguard.rules.tree import CLOCKS, Node
from stepguard.rules.wording import listed, nearest, quote, say
from stepguard.signals import signal

_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
LITERALS = {"inf": math.inf, "nan": math.nan}
"""Numbers that are written as words."""
_DECIMAL = re.compile(r"(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?", re.ASCII)


class Checker:
    """Turns one syntax tree into a typed tree.

    A part with a fault becomes None and its fault is kept in `faults`; the parts around it are still checked.
    After `MOST_FAULTS` it gives up with an ExpressionError.
    """

    def __init__(self, text: str, shift: int) -> None:
        self.faults: list[Fault] = []
        self._text = text
        self._shift = shift
        self._joint = False
        """Whether the part that is being checked stands inside a function that asks many layers at once."""

    def truth(self, node: ast.expr) -> Node | None:
        """Check a part that must be a truth."""
        return self._expect(node, True, "a truth such as 'loss > 5'")

    def _number(self, node: ast.expr) -> Node | None:
        return self._expect(node, False, "a number")

    def _expect(self, node: ast.expr, truth: bool, expected: str) -> Node | None:
        found = self._any(node)
        if found is not None and found.kind.truth != truth:
            shown = f"{found.kind}: {quote(self._source(node))}"
            return self._fail(node, say("the wrong type", expected=expected, got=shown))
        return found

    def _any(self, node: ast.expr) -> Node | None:  # noqa: PLR0911 - one line for each kind of node
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.BinOp():
                return self._arithmetic(node)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.BoolOp():
                operator = "and" if isinstance(node.op, ast.And) else "or"
                return _join(operator, [self.truth(part) for part in node.values], truth=True)
            case ast.Call():
                return self._call(node)
            case _:
                return self._fail(node, f"{quote(self._source(node))} is not part of the language")

    # Leaves

    def _constant(self, node: ast.Constant) -> Node | None:
        value = self._decimal(node)
        if value is None:
            expected = "a decimal number, at most 1.7e308, or inf"
            return self._fail(node, say("not a number", expected=expected, got=quote(self._source(node))))
        return tree.constant(value)

    def _decimal(self, node: ast.Constant) -> float | None:
        source = self._source(node)
        value = float(source.replace("_", "")) if _DECIMAL.fullmatch(source) else math.inf
        return value if math.isfinite(value) else None

    def _name(self, node: ast.Name | ast.Attribute) -> Node | None:
        name = dotted(node)
        if name is None:
            got = quote(self._source(node))
            return self._fail(node, say("an attribute of something", expected="a signal", got=got))
        if name in LITERALS:
            return tree.constant(LITERALS[name])
        if name in CLOCKS:
            return tree.read(name, vector=False, positive=True)
        found = signal(name)
        if found is None:
            return self._fail(node, unknown_name(name))
        return tree.read(name, vector=found.per == "layer", positive=found.positive)

    # Operators

    def _arithmetic(self, node: ast.BinOp) -> Node | None:
        parts = [self._number(node.left), self._number(node.right)]
        operator = _ARITHMETIC.get(type(node.op))
        if operator is None:
            return self._fail(node, say("an unknown operator", expected=listed(_ARITHMETIC.values())))
        match parts:
            case [tree.Constant() as left, tree.Constant() as right]:
                return self._folded(node, arithmetic(operator, left.value, right.value))
            case _:
                return _join(operator, parts, truth=False)

    def _folded(self, node: ast.expr, value: float) -> Node | None:
        """Put the number in place of arithmetic with numbers alone."""
        if math.isfinite(value):
            return tree.constant(value)
        got = f"{value:g}: {quote(self._source(node))}"
        return self._fail(node, say("not a number", expected="at most 1.7e308, or inf", got=got))

    def _unary(self, node: ast.UnaryOp) -> Node | None:
        if isinstance(node.op, ast.Not):
            return _join("not", [self.truth(node.operand)], truth=True)
        part = self._number(node.operand)
        if not isinstance(node.op, ast.USub):
            return self._fail(node, say("an unknown sign", expected="'-' or 'not'"))
        if isinstance(part, tree.Constant):
            return tree.constant(-part.value)
        return _join("-", [part], truth=False)

    def _comparison(self, node: ast.Compare) -> Node | None:
        parts = [self._number(part) for part in (node.left, *node.comparators)]
        pairs: list[Node | None] = []
        for left, operator, right in zip(parts, node.ops, parts[1:], strict=False):
            name = _COMPARISONS.get(type(operator))
            if name is None:
                return self._fail(node, say("an unknown comparison", expected=listed(_COMPARISONS.values())))
            if isinstance(left, tree.Constant) and isinstance(right, tree.Constant):
                return self._fail(node, "always the same: it compares two numbers")
            pairs.append(_join(name, [left, right], truth=True))
        return pairs[0] if len(pairs) == 1 else _join("and", pairs, truth=True)

    # Calls

    def _call(self, node: ast.Call) -> Node | None:
        name = dotted(node.func)
        function = FUNCTIONS.get(name) if name else None
        if function is None:
            for argument in node.args:
                if not isinstance(argument, ast.Constant | ast.Starred):
                    self._any(argument)
            return self._fail(node.func, unknown_function(name))
        argument = self._argument(node, function)
        settings = self._settings(node, function)
        if argument is None or settings is None or not self._fits(node, function, argument, settings):
            return None
        return tree.call(function.name, argument, settings)

    def _argument(self, node: ast.Call, function: Function) -> Node | None:
        if not node.args:
            return self._fail(node, say(f"{function.name} has no argument", expected=function.signature))
        first = node.args[0]
        around, self._joint = (
            self._joint,
            self._joint or (isinstance(function, OverLayers) and function.joint),
        )
        argument = self.truth(first) if function.takes == "truth" else self._number(first)
        self._joint = around
        if argument and isinstance(function, OverLayers | Pick) and not argument.kind.vector:
            shown = f"{argument.kind}: {quote(self._source(first))}"
            what = say(
                f"{function.name} goes over layers", expected=f"a {function.takes} per layer", got=shown
            )
            return self._fail(first, what)
        return argument

    def _settings(self, node: ast.Call, function: Function) -> dict[str, float] | None:
        """Bind what stands behind the argument; None if anything of it is wrong."""
        before = len(self.faults)
        given = self._bind(node, function)
        settings: dict[str, float] = {}
        for setting in function.settings:
            if setting.name in given:
                settings[setting.name] = self._setting(given[setting.name], function, setting)
            elif (default := setting.unless_given(joint=self._joint)) is not None:
                settings[setting.name] = default
            else:
                what = f"{function.name} needs {setting.name}: {setting.doc}"
                self._fail(node, say(what, expected=function.signature))
        return settings if len(self.faults) == before else None

    def _bind(self, node: ast.Call, function: Function) -> dict[str, ast.expr]:
        names = [setting.name for setting in function.settings]
        given = dict(zip(names, node.args[1:], strict=False))
        for extra in node.args[1 + len(names) :]:
            self._fail(extra, say(f"{function.name} takes no more", expected=function.signature))
        for keyword in node.keywords:
            if keyword.arg in given:
                self._fail(keyword.value, f"{keyword.arg} is given twice")
            elif keyword.arg in names:
                given[keyword.arg] = keyword.value
            else:
                what = f"{function.name} has no setting {quote(keyword.arg or '**')}"
                near = nearest(keyword.arg or "", names)
                self._fail(keyword.value, say(what, expected=function.signature, near=near), keyword)
        return given

    def _setting(self, node: ast.expr, function: Function, setting: Setting) -> float:
        name = f"{setting.name} of {function.name}"
        value = self._literal(node)
        if value is None:
            expected = f"{setting.expected}, written down"
            self._fail(node, say(name, expected=expected, got=quote(self._source(node))))
            return math.nan
        if not setting.allows(value):
            self._fail(node, say(name, expected=setting.expected, got=f"{value:g}"))
        return value

    def _literal(self, node: ast.expr) -> float | None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._literal(node.operand)
            return None if value is None else -value
        if isinstance(node, ast.Name):
            return LITERALS.get(node.id)
        return self._decimal(node) if isinstance(node, ast.Constant) else None

    def _fits(self, node: ast.Call, function: Function, argument: Node, settings: dict[str, float]) -> bool:
        before = len(self.faults)
        for setting in function.settings:
            if setting.at_most and settings[setting.name] > settings[setting.at_most]:
                limit = f"at most {settings[setting.at_most]:g}, its '{setting.at_most}'"
                got = f"{settings[setting.name]:g}"
                self._fail(node, say(f"{setting.name} of {function.name}", expected=limit, got=got))
        if isinstance(function, OverSteps | Detector):
            longest = LONGEST["layer" if argument.kind.vector else "run"]
            reach = function.reach(settings)
            if reach > longest:
                what = f"the window of {function.name}"
                self._fail(node, say(what, expected=f"at most {longest:,} steps", got=f"{reach:,}"))
        return len(self.faults) == before

    # Faults

    def _fail(self, node: ast.expr, what: str, place: ast.AST | None = None) -> None:
        offset = getattr(place or node, "col_offset", node.col_offset)
        self.faults.append(Fault(self._shift + offset, what))
        if len(self.faults) >= MOST_FAULTS:
            raise ExpressionError(self.faults)

    def _source(self, node: ast.expr) -> str:
        end = node.end_col_offset or node.col_offset
        return " ".join(self._text[self._shift + node.col_offset : self._shift + end].split())


def _join(operator: str, parts: Sequence[Node | None], *, truth: bool) -> Node | None:
    whole = [part for part in parts if part is not None]
    return tree.operation(operator, whole, truth=truth) if len(whole) == len(parts) else None
