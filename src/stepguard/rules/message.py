"""The message of a rule: a text with measured values filled in, and nothing else of Python's formatting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter

from stepguard.rules.expression import Condition, Fault
from stepguard.rules.wording import nearest, quote, say

_SPEC = re.compile(r"(?:[<>^]?\d{1,2})?(?:,)?(?:\.\d{1,2})?[a-zA-Z%]?", re.ASCII)
_SAMPLES: Mapping[str, float | int | str] = {
    "value": 0.5,
    "layer": "conv1",
    "layers": 3,
    "total": 12,
    "share": 0.25,
    "step": 100,
}
"""Every name that a message may use beside what its condition measures, with an example."""
_OF_LAYERS = {"layer", "layers", "total", "share"}
UNKNOWN = "unknown"
"""What stands for a value that was not measured."""


def check_message(template: str, condition: Condition) -> list[Fault]:
    """Find everything that is wrong with a message."""
    samples = _samples(condition)
    faults: list[Fault] = []
    at = 0
    try:
        for literal, name, spec, conversion in Formatter().parse(template):
            at += len(literal)
            what = None if name is None else _fault(name, spec or "", conversion, samples)
            if what:
                faults.append(Fault(at, what))
            at = template.find("}", at) + 1 if name is not None else at + 1
    except ValueError as error:
        what = say("a brace that does not fit", expected="{name}, or {{ for a brace", got=str(error))
        faults.append(Fault(at, what))
    return faults


def render(template: str, values: Mapping[str, float | int | str]) -> str:
    """Fill in the values. Never raises: what is missing reads `unknown`.

    >>> render("std rose {rise:.1f}x at {layer} to {value:.3g}", {"rise": 31.42, "layer": "conv1"})
    'std rose 31.4x at conv1 to unknown'
    """
    try:
        parts = Formatter().parse(template)
        return "".join(literal + _filled(name, spec, values) for literal, name, spec, _ in parts)
    except ValueError:
        return template


def _filled(name: str | None, spec: str | None, values: Mapping[str, float | int | str]) -> str:
    if name is None:
        return ""
    value = values.get(name)
    if value is None:
        return UNKNOWN
    try:
        return format(value, spec or "")
    except ValueError:
        return str(value)


def _samples(condition: Condition) -> dict[str, float | int | str]:
    hidden = set[str]() if condition.layered else _OF_LAYERS
    common = {name: sample for name, sample in _SAMPLES.items() if name not in hidden}
    return common | dict.fromkeys(condition.measures, 1.5)


def _fault(
    name: str, spec: str, conversion: str | None, samples: Mapping[str, float | int | str]
) -> str | None:
    if name in _OF_LAYERS and name not in samples:
        return f"{{{name}}} means nothing here: the condition looks at no layers"
    if name not in samples:
        near = nearest(name, samples)
        return say("an unknown value", expected=_names(list(samples)), got=quote(name), near=near)
    if conversion:
        return say("a conversion", expected="none", got=f"'!{conversion}'")
    return None if _formats(samples[name], spec) else _bad_spec(name, spec, samples[name])


def _formats(sample: float | int | str, spec: str) -> bool:
    try:
        return _SPEC.fullmatch(spec) is not None and bool(format(sample, spec))
    except ValueError:
        return False


def _bad_spec(name: str, spec: str, sample: float | int | str) -> str:
    expected = "a width" if isinstance(sample, str) else "a format such as .3g"
    return say(f"the format of {name}", expected=expected, got=quote(spec))


def _names(names: Sequence[str]) -> str:
    return f"one of {', '.join(names)}"
