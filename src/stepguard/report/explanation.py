"""A rule, a function or a signal explained: pairs of a label and a text, for `stepguard explain`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepguard.report.measured import measured
from stepguard.report.vocabulary import DEEDS, Lines
from stepguard.report.words import count, listing, settings
from stepguard.rules import tree
from stepguard.rules.expression import compile_condition
from stepguard.rules.functions import FUNCTIONS, Detector, Elementwise, Function, OverLayers, Pick
from stepguard.rules.phrasing import phrase
from stepguard.rules.rule import Action, Active, Bound, LayerFilter, Rule
from stepguard.rules.schema import example_of
from stepguard.rules.setting import Setting
from stepguard.rules.wording import listed
from stepguard.series import detectors, windows
from stepguard.signals import Signal

_JOINT = listed(name for name, each in FUNCTIONS.items() if isinstance(each, OverLayers) and each.joint)
_AUTO = "a remedy chosen by what was measured and tried"


def of_rule(rule: Rule, place: str, text: str) -> Lines:
    """Explain a rule that stands at `place` in a file with this text."""
    yield "fires", phrase(rule.condition)
    yield "condition", " ".join(rule.condition.text.split())
    if rule.layers != LayerFilter():
        yield "looks at", filter_words(rule.layers)
    if rule.hold > 1:
        yield "for", f"once that has held at {rule.hold:,} evaluated steps in a row"
    if rule.keep:
        yield "keeps", f"firing for {count(rule.keep, 'step')} after it stopped holding"
    if rule.active != Active():
        yield "awake", active_words(rule.active)
    yield "severity", rule.severity
    yield "then", "\n".join(ladder_words(rule))
    yield from _reasons(rule, text)
    yield "stands", place


def _reasons(rule: Rule, text: str) -> Lines:
    comment = comments(text, rule.place.line, rule.place.column)
    if comment:
        yield "why", comment
    if rule.message:
        yield "says", rule.message
    if rule.advice:
        yield "cures", "\n".join(f"- {advice}" for advice in rule.advice)
    if rule.source:
        yield "source", rule.source
    yield "measured", measured(rule)
    for name in _detectors(rule):
        yield "noise", f"{name}: {_paragraph(name, 'False alarms')}"


def _detectors(rule: Rule) -> list[str]:
    calls = [node.function for node in tree.walk(rule.condition.root) if isinstance(node, tree.Call)]
    return [name for name in dict.fromkeys(calls) if isinstance(FUNCTIONS[name], Detector)]


def _paragraph(detector: str, begins: str) -> str:
    """The paragraph of a detector's docstring that begins so."""
    paragraphs = _documentation(FUNCTIONS[detector]).split("\n\n")
    return next(" ".join(each.split()) for each in paragraphs if each.startswith(begins))


def comments(text: str, line: int, column: int) -> str:
    """The comments inside a rule that begins at this line and column, both counted from 1."""
    found: list[str] = []
    for each in text.split("\n")[line:]:
        inside = each.lstrip()
        if inside and len(each) - len(inside) < column - 1:
            break
        if inside.startswith("#"):
            found.append(inside.lstrip("# "))
    return " ".join(found)


def filter_words(layers: LayerFilter) -> str:
    """Which layers a rule looks at."""
    parts = [
        f"of type {listed(layers.types)}" if layers.types else "",
        f"named {listed(layers.names)}" if layers.names else "",
        f"but not {listed(layers.without)}" if layers.without else "",
    ]
    return f"layers {' '.join(filter(None, parts))}"


def active_words(active: Active) -> str:
    """When a rule is awake."""
    start, end = _bound(active.start), _bound(active.end)
    if active.end == Active().end:
        words = f"from {start} on"
    else:
        words = f"up to {end}" if active.start == Active().start else f"from {start} to {end}"
    return f"{words} (asleep where total_steps is not known)" if active.needs_total else words


def _bound(bound: Bound) -> str:
    return f"{bound.value:g} % of the run" if bound.percent else f"step {bound.value:,.0f}"


def ladder_words(rule: Rule) -> Iterator[str]:
    """What a rule does, a line each rung."""
    last = len(rule.ladder)
    rungs = [action_words(action, last=number == last) for number, action in enumerate(rule.ladder, 1)]
    if len(rungs) == 1:
        yield rungs[0]
        return
    yield from (f"{number}. {rung}" for number, rung in enumerate(rungs, 1))
    yield f"the next is tried unless the condition stays clear for {count(rule.settle, 'step')}"


def action_words(action: Action, *, last: bool) -> str:
    """One rung: what it does, with what, and how often."""
    changed = settings(action.settings) or (_AUTO if action.kind == "restart" else "")
    words = f"{DEEDS[action.kind]}{f', with {changed}' if changed else ''}"
    times = action.times or (None if last else 1)
    return words if times in (None, 1) else f"{words}, up to {times:,} times"


def of_function(function: Function, users: Sequence[str]) -> Lines:
    """Explain a function of the rule language; `users` are the rules that call it."""
    folds = isinstance(function, OverLayers | Pick)
    yield "function", function.signature
    yield "gives", f"a {function.gives}{' for the run' if folds else ''}: {function.doc}"
    yield "takes", f"a {function.takes}{' per layer' if folds else ', per layer or of the run'}"
    for setting in function.settings:
        yield setting.name, _setting_words(setting)
    if isinstance(function, Detector):
        yield "measures", f"{', '.join(function.measures)} (for the message)"
    example = example_of(function)
    yield "written", f"{example}: it holds {phrase(compile_condition(example))}"
    documentation = _documentation(function)
    if documentation:
        yield "more", "\n\n".join(" ".join(each.split()) for each in documentation.split("\n\n"))
    if users:
        yield "called by", listing(list(users), 12)


def _setting_words(setting: Setting) -> str:
    default = "" if setting.default is None else f"; {setting.default:g} unless given"
    joint = "" if setting.joint is None else f", {setting.joint:g} inside {_JOINT}"
    return f"{setting.doc}: {setting.expected}{default}{joint}"


def _documentation(function: Function) -> str:
    """The docstring of what runs: with its definition, its false alarms and its source."""
    match function:
        case OverLayers() | Elementwise():
            found = function.run
        case Pick():
            found = function.index
        case _:
            found = getattr(detectors, function.name, None) or getattr(windows, function.name, None)
    return (inspect.getdoc(found) or "") if inspect.isfunction(found) else ""


def of_signal(signal: Signal, readers: Sequence[str]) -> Lines:
    """Explain a signal; `readers` are the rules that read it."""
    yield "signal", f"{signal.name}: {signal.meaning}"
    yield "one for", "each layer" if signal.per == "layer" else "the run"
    yield "unit", signal.unit
    yield "sign", "never below zero" if signal.positive else "may be negative"
    if readers:
        yield "read by", listing(list(readers), 12)


def place_of(rule: Rule, path: Path | None) -> str:
    """FILE:LINE of a rule; `path` is the pack's file where it is of a pack."""
    return f"{path or rule.place.file}:{rule.place.line}"
