"""A condition in words: from its typed tree to an English sentence, nothing of it written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stepguard.rules.expression import Condition
from stepguard.rules.functions import FUNCTIONS, Detector, OverLayers
from stepguard.rules.tree import CLOCKS, Call, Constant, Node, Operation, Read
from stepguard.rules.wording import plural
from stepguard.signals import signal

PHRASES: Mapping[str, str] = {
    "prev": "{x} {n_steps} ago",
    "delta": "the change of {x} over {n_steps}",
    "growth": "the factor by which {x} grew over {n_steps}",
    "mean": "the mean of {x} over the last {n_steps}",
    "median": "the median of {x} over the last {n_steps}",
    "min": "the least {x} of the last {n_steps}",
    "max": "the largest {x} of the last {n_steps}",
    "std": "the standard deviation of {x} over the last {n_steps}",
    "mad": "the median absolute deviation of {x} over the last {n_steps}",
    "ewma": "the mean of {x} that forgets within {n_steps}",
    "early": "{x} in the first {n_steps}",
    "slope": "the slope a step of {x} over the last {n_steps}",
    "trend": "the sureness (Mann-Kendall z) that {x} rises over the last {n_steps}",
    "zscore": "the distance of {x} from the {n_steps} before, in robust standard deviations,",
    "held": "in at least {n} of the last {of_steps} {x}",
    "crash": "{x} rose {rise}-fold and fell {fall}-fold within {within_steps}[ ({young} spreads in youth)]",
    "spike": "{x} jumped to {by} times the {n_steps} before or more",
    "plateau": "{x} has surely fallen by less than {by_percent} over the last {n_steps}",
    "drift": "{x} has moved up {by}-fold or more within the last {n_steps} and stayed there",
    "any": "at one layer or more {x}",
    "all": "at every layer {x}",
    "share": "the share of layers {x}",
    "count": "the number of layers {x}",
    "worst": "the largest {x} of all layers",
    "first": "{x} at the first layer",
    "last": "{x} at the last layer",
    "nonfinite": "{x} is NaN or infinite",
    "sure": "it is sure that {x}",
    "abs": "the size without sign of {x}",
}
"""How each function of the language is said: `{x}` its argument, `{n}` a setting, `{n_steps}` in steps.

What stands in square brackets is left out where its setting is 0.
"""
_OPTIONAL = re.compile(r"\[(.*?{(\w+)}.*?)\]")

_OPERATORS: Mapping[str, str] = {
    "<": "is below",
    "<=": "is at most",
    ">": "is above",
    ">=": "is at least",
    "==": "equals",
    "!=": "differs from",
    "+": "plus",
    "-": "minus",
    "*": "times",
    "/": "over",
    "**": "to the power",
    "and": "and",
    "or": "or",
}
_CLOCKS: Mapping[str, str] = {"step": "the step", "progress": "the share of the run that is over"}
assert set(_CLOCKS) == set(CLOCKS)


def phrase(condition: Condition) -> str:
    """Say when a condition holds; each signal's meaning stands behind its first mention.

    >>> from stepguard.rules.expression import compile_condition
    >>> condition = compile_condition("share(crash(act.std, rise=3, fall=4, within=60)) >= 0.5")
    >>> phrase(condition)  # doctest: +NORMALIZE_WHITESPACE
    'when the share of layers whose act.std (standard deviation of the output) rose 3-fold and fell 4-fold
    within 60 steps is at least 0.5'
    """
    speaker = _Speaker()
    if condition.vector:
        return f"at each layer {speaker.of_layer(condition.root)}"
    return f"when {speaker.say(condition.root)}"


class _Speaker:
    """Says nodes; remembers which signals it has explained."""

    def __init__(self) -> None:
        self._explained: set[str] = set()

    def say(self, node: Node) -> str:
        """Say a node: a noun for a number, a clause for a truth."""
        match node:
            case Constant():
                return f"{node.value:g}"
            case Read():
                return self._signal(node.text)
            case Call():
                return self._call(node)
            case Operation():
                return self._operation(node)
            case _:
                raise TypeError(f"no words for {type(node).__name__}")

    def of_layer(self, node: Node) -> str:
        """Say what is true of layers: `whose act.std is above 3`, `where ...`."""
        return f"{'whose' if _begins_with_signal(node) else 'where'} {self.say(node)}"

    def _signal(self, name: str) -> str:
        found = signal(name)
        if found is None:
            return _CLOCKS[name]
        if name in self._explained:
            return name
        self._explained.add(name)
        return f"{name} ({found.meaning})"

    def _call(self, node: Call) -> str:
        words = {name: f"{value:g}" for name, value in node.settings.items()}
        words |= {
            f"{name}_steps": plural(int(value), "step")
            for name, value in node.settings.items()
            if value == int(value)
        }
        words |= {f"{name}_percent": f"{value * 100:g} %" for name, value in node.settings.items()}
        function = FUNCTIONS[node.function]
        counts = isinstance(function, OverLayers) and function.gives == "number"
        inside = self.of_layer(node.argument) if counts else self._inner(node.argument)
        told = _OPTIONAL.sub(lambda part: part[1] if node.settings[part[2]] else "", PHRASES[node.function])
        return told.format(x=inside, **words)

    def _operation(self, node: Operation) -> str:
        if node.operator == "not":
            return f"it is not so that {self._inner(node.parts[0])}"
        if len(node.parts) == 1:
            return f"minus {self._inner(node.parts[0])}"
        comma = "," if node.operator in {"and", "or"} else ""
        parts = [self._part(part, node) for part in node.parts]
        return f"{comma} {_OPERATORS[node.operator]} ".join(parts)

    def _part(self, part: Node, whole: Operation) -> str:
        """Say a part of an operation, in brackets where it is not plain what belongs to what."""
        if _is_comparison(whole):
            return self.say(part)
        if whole.operator not in {"and", "or"}:
            return self._inner(part)
        mixed = isinstance(part, Operation) and part.operator in {"and", "or"} - {whole.operator}
        return f"({self.say(part)})" if mixed else self.say(part)

    def _inner(self, node: Node) -> str:
        """Say a part inside something tighter: what is made of parts stands in brackets."""
        loose = isinstance(node, Operation) and not _is_comparison(node)
        return f"({self.say(node)})" if loose else self.say(node)


def _is_comparison(node: Operation) -> bool:
    return node.kind.truth and node.operator not in {"and", "or", "not"}


def _begins_with_signal(node: Node) -> bool:
    """Whether the clause begins with a signal per layer, and is about that signal only."""
    if isinstance(node, Operation):
        return _is_comparison(node) and isinstance(node.parts[0], Read) and node.parts[0].kind.vector
    if isinstance(node, Call):
        about = isinstance(FUNCTIONS[node.function], Detector) or node.function == "nonfinite"
        return about and isinstance(node.argument, Read)
    return False
