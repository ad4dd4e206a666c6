"""Files of rule tests: layers, series in promtool's notation, and the exact alerts that they should raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepguard.errors import Place, RuleFileError
from stepguard.rules.document import DocumentError, Entries, Node, Scalar, parse
from stepguard.rules.fields import Fields, Found, ListOf, Number, Report, Text, TooManyFaults, describe
from stepguard.rules.notation import SeriesError, read_series
from stepguard.rules.packs import load_rules, pack_names, read_text
from stepguard.rules.rule import Ruleset
from stepguard.rules.wording import nearest, quote, say
from stepguard.signals import SIGNALS, Frame, Layer, Vector, signal

Series = list[float | None]
"""One value a step, from step 0 on; None where nothing is measured."""


class Alert(NamedTuple):
    """An alert that begins to fire: which rule, at which layer, at which step."""

    rule: str
    layer: str | None
    step: int


@dataclass(frozen=True)
class RuleTest:
    """One test of a file."""

    name: str
    place: Place
    rules: Ruleset
    layers: tuple[Layer, ...]
    total_steps: int | None
    run: Mapping[str, Series]
    """Series of the run, by signal."""
    per_layer: Mapping[str, Mapping[str, Series]]
    """Series by signal, then by layer."""
    expected: frozenset[Alert]

    @property
    def steps(self) -> int:
        """How many steps the longest series has."""
        vectors = (series for layers in self.per_layer.values() for series in layers.values())
        return max(map(len, [*self.run.values(), *vectors]), default=0)

    def frame(self, step: int) -> Frame:
        """Put together what is measured at a step."""
        scalars = {name: _at(series, step) for name, series in self.run.items()}
        frame = Frame(step, {name: value for name, value in scalars.items() if value is not None})
        for name, layers in self.per_layer.items():
            values = [_at(layers.get(layer.name, []), step) for layer in self.layers]
            known = np.array([value is not None for value in values])
            numbers = [np.nan if value is None else value for value in values]
            if known.any():
                frame.vectors[name] = Vector(np.array(numbers, np.float32), known)
        return frame


def _at(series: Series, step: int) -> float | None:
    return series[step] if step < len(series) else None


@dataclass(frozen=True)
class _SeriesText:
    """One series."""

    def read(self, node: Node, name: str, report: Report) -> Series | None:
        if not isinstance(node, Scalar):
            report.add(
                node.place, say(name, expected="a series such as 0.1 0.1+0.05x20 _", got=describe(node))
            )
            return None
        try:
            return read_series(node.text)
        except SeriesError as error:
            report.add(node.at(error.fault.offset), error.fault.what)
            return None


@dataclass(frozen=True)
class _SeriesMap:
    """Series by signal: a text for the run or for all layers alike, a mapping for layers."""

    def read(self, node: Node, name: str, report: Report) -> dict[str, Series | dict[str, Series]] | None:
        if not isinstance(node, Entries):
            report.add(node.place, say(name, expected="signals with their series", got=describe(node)))
            return None
        found: dict[str, Series | dict[str, Series]] = {}
        for key, (scalar, value) in node.entries.items():
            known = signal(key)
            if known is None:
                report.add(scalar.place, say("an unknown signal", got=quote(key), near=nearest(key, SIGNALS)))
            elif known.per == "layer" and isinstance(value, Entries):
                layers = value.entries.items()
                found[key] = {layer: self._series(text, key, report) for layer, (_, text) in layers}
            else:
                found[key] = self._series(value, key, report)
        return found

    def _series(self, node: Node, name: str, report: Report) -> Series:
        return _SeriesText().read(node, name, report) or []


_LAYERS = ListOf(Fields("a layer", {"name": Text(), "type": Text()}, required=("name", "type")))
_ALERT = Fields(
    "an alert",
    {"rule": Text(), "layer": Text(), "step": Number(0, whole=True)},
    required=("rule", "step"),
)
_TEST = Fields(
    "a test",
    {
        "name": Text(),
        "layers": _LAYERS,
        "total_steps": Number(1, whole=True),
        "series": _SeriesMap(),
        "alerts": ListOf(_ALERT),
    },
    required=("name", "series", "alerts"),
)
TESTS = Fields(
    "a file of rule tests",
    {
        "description": Text(longest=10_000),
        "rules": ListOf(Text("a pack or a file")),
        "layers": _LAYERS,
        "tests": ListOf(_TEST),
    },
    required=("rules", "tests"),
)
"""The fields of a file of rule tests; `layers` of the file are for every test that has none of its own."""


def read_tests(path: Path) -> tuple[RuleTest, ...]:
    """Read a file of rule tests; RuleFileError with every fault of it and of the rules that it names."""
    report = Report()
    tests: list[RuleTest] = []
    with suppress(TooManyFaults):
        found = _read(path, report)
        tests = [] if found is None or report.problems else _build(path, found, report)
    if report.problems:
        raise RuleFileError(report.problems)
    return tuple(tests)


def _read(path: Path, report: Report) -> dict[str, Found] | None:
    try:
        document = parse(read_text(path, str(path)), str(path))
    except DocumentError as error:
        report.problems.append(error.problem)
        return None
    report.problems.extend(document.problems)
    return TESTS.read(document.root, "the file", report)


def _build(path: Path, found: dict[str, Found], report: Report) -> list[RuleTest]:
    sources = [name if name in pack_names() else path.parent / name for name in found["rules"].value]
    rules = load_rules(sources)
    nodes = getattr(found["tests"].node, "items", [found["tests"].node])
    pairs = zip(nodes, found["tests"].value, strict=True)
    return [_Builder(node.place, fields, found, rules, report).build() for node, fields in pairs]


@dataclass
class _Builder:
    """Makes a test out of its fields, and checks its names."""

    place: Place
    fields: dict[str, Found]
    file: dict[str, Found]
    rules: Ruleset
    report: Report
    layers: tuple[Layer, ...] = field(init=False, default=())

    def build(self) -> RuleTest:
        described = self.fields.get("layers") or self.file.get("layers")
        each = described.value if described else ()
        self.layers = tuple(Layer(layer["name"].value, layer["type"].value) for layer in each)
        run, per_layer = self._series()
        return RuleTest(
            name=self.fields["name"].value,
            place=self.place,
            rules=self.rules,
            layers=self.layers,
            total_steps=self.fields["total_steps"].value if "total_steps" in self.fields else None,
            run=run,
            per_layer=per_layer,
            expected=frozenset(self._alert(alert) for alert in self.fields["alerts"].value),
        )

    def _series(self) -> tuple[dict[str, Series], dict[str, dict[str, Series]]]:
        names = [layer.name for layer in self.layers]
        run: dict[str, Series] = {}
        per_layer: dict[str, dict[str, Series]] = {}
        given: dict[str, Series | dict[str, Series]] = self.fields["series"].value
        for name, series in given.items():
            if isinstance(series, dict):
                self._check_layers(series, self.fields["series"].node)
                per_layer[name] = series
            elif getattr(signal(name), "per", "run") == "layer":
                per_layer[name] = dict.fromkeys(names, series)
            else:
                run[name] = series
        return run, per_layer

    def _check_layers(self, names: Mapping[str, Any], node: Node) -> None:
        for name in names:
            self._known(name, [layer.name for layer in self.layers], "an unknown layer", node.place)

    def _alert(self, fields: dict[str, Found]) -> Alert:
        rule, layer = fields["rule"], fields.get("layer")
        self._known(rule.value, [each.name for each in self.rules], "an unknown rule", rule.node.place)
        if layer:
            names = [each.name for each in self.layers]
            self._known(layer.value, names, "an unknown layer", layer.node.place)
        return Alert(rule.value, layer.value if layer else None, fields["step"].value)

    def _known(self, name: str, names: Sequence[str], what: str, place: Place) -> None:
        if name not in names:
            self.report.add(place, say(what, got=quote(name), near=nearest(name, names)))
