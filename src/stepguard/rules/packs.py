"""Loads rule files: packs and paths, what they extend and disable, merged into one set of checked rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepguard.errors import Place, Problem, RuleFileError
from stepguard.rules.document import LARGEST, DocumentError, Scalar, decode, parse
from stepguard.rules.fields import Found, Report, TooManyFaults
from stepguard.rules.message import check_message
from stepguard.rules.rule import Rule, Ruleset
from stepguard.rules.spec import FileSpec, RuleSpec, read_file
from stepguard.rules.wording import nearest, quote, say

Sources = str | Path | Sequence[str | Path]
"""A pack's name, a path, or several of them."""

MOST_FILES = 100


def _packs() -> Path:
    installed = Path(__file__).parents[1] / "packs"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "rules"


def pack_names() -> tuple[str, ...]:
    """Name the packs that are shipped."""
    return tuple(sorted(path.stem for path in _packs().glob("*.yaml")))


def pack_path(name: str) -> Path:
    """Find the file of a pack; KeyError for an unknown one."""
    if name not in pack_names():
        raise KeyError(name)
    return _packs() / f"{name}.yaml"


def load_rules(sources: Sources) -> Ruleset:
    """Load rules, later sources over earlier ones; RuleFileError with every fault of every file.

    A str is a pack's name, or else a path. A rule of a later source replaces the fields that it sets of the
    rule with its name.
    """
    return read_rules(sources).ruleset


def read_text_rules(text: str, label: str) -> Ruleset:
    """Read the text of one rule file, called `label` in its faults; RuleFileError as for a file."""
    merge = _Merge()
    with suppress(TooManyFaults):
        merge.add_text(text, label)
    return merge.ruleset()


@dataclass(frozen=True)
class Loaded:
    """Rules, and where each of their fields stands."""

    ruleset: Ruleset
    fields: Mapping[str, Mapping[str, Found]]
    """By rule, then by field: the node that had the last word."""


def read_rules(sources: Sources) -> Loaded:
    """Load rules as `load_rules` does, together with the places of their fields."""
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    merge = _Merge()
    with suppress(TooManyFaults):
        for source in given:
            merge.add(_locate(source, Path()), Place(str(source), 1, 1))
    ruleset = merge.ruleset()
    return Loaded(ruleset, {name: merged.fields for name, merged in merge.rules.items()})


@dataclass(frozen=True)
class _Source:
    """A file to load: where it lies, and how a person names it."""

    path: Path
    label: str


def _locate(source: str | Path, folder: Path) -> _Source:
    if isinstance(source, str) and source in pack_names():
        path = pack_path(source)
        return _Source(path, path.name)
    path = folder / source
    return _Source(path, str(path))


def _identity(path: Path) -> Path:
    """Give every file one name; a name that the system refuses stays as it is."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


@dataclass
class _Merged:
    """A rule out of several files."""

    name: str
    place: Place
    fields: dict[str, Found] = field(default_factory=dict[str, Found])
    faulty: set[str] = field(default_factory=set[str])

    def add(self, spec: RuleSpec) -> None:
        self.place = spec.place
        self.fields |= spec.fields
        self.faulty = (self.faulty | spec.given) - set(spec.fields)


class _Merge:
    """Goes through files depth first, each once, and merges their rules by name."""

    def __init__(self) -> None:
        self.report = Report()
        self.texts: dict[str, str] = {}
        self.rules: dict[str, _Merged] = {}
        self._specs: dict[Path, FileSpec | None] = {}
        self._open: list[Path] = []

    def add(self, source: _Source, place: Place) -> bool:
        """Merge a file and what it extends; False if something of that cannot be read."""
        path = _identity(source.path)
        if path in self._open:
            chain = " extends ".join(each.name for each in [*self._open[self._open.index(path) :], path])
            self.report.add(place, f"extends itself: {chain}")
            return False
        if path in self._specs:
            return self._specs[path] is not None
        spec = self._specs[path] = self._read(source, place)
        if spec is None:
            return False
        self._open.append(path)
        whole = all([self.add(_locate(name, source.path.parent), at) for name, at in spec.extends])
        self._open.pop()
        self._apply(spec, whole)
        return whole

    def add_text(self, text: str, label: str) -> None:
        """Merge a file that is given as text."""
        self.texts[label] = text
        try:
            spec = read_file(parse(text, label), label, self.report)
        except DocumentError as error:
            self.report.problems.append(error.problem)
            return
        whole = all([self.add(_locate(name, Path()), at) for name, at in spec.extends])
        self._apply(spec, whole)

    def ruleset(self) -> Ruleset:
        """Check and freeze all rules; RuleFileError with every fault found so far."""
        rules: list[Rule] = []
        with suppress(TooManyFaults):
            rules += (rule for rule in map(self.build, self.rules.values()) if rule is not None)
        if self.report.problems:
            raise RuleFileError(self.problems())
        return Ruleset(tuple(rules), self.texts)

    def _read(self, source: _Source, place: Place) -> FileSpec | None:
        if len(self._specs) >= MOST_FILES:
            self.report.add(place, say("too many files", expected=f"at most {MOST_FILES}"))
            return None
        label = source.label if source.label not in self.texts else str(_identity(source.path))
        try:
            text = self.texts[label] = read_text(source.path, label, place)
            return read_file(parse(text, label), label, self.report)
        except DocumentError as error:
            self.report.problems.append(error.problem)
            return None

    def _apply(self, spec: FileSpec, whole: bool) -> None:
        for name, place in spec.disable:
            if name in self.rules:
                del self.rules[name]
            elif whole:
                near = nearest(name, self.rules)
                expected = "a rule of the extended files"
                what = say("nothing to disable", expected=expected, got=quote(name), near=near)
                self.report.add(place, what)
        for rule in spec.rules:
            self.rules.setdefault(rule.name, _Merged(rule.name, rule.place)).add(rule)

    def build(self, merged: _Merged) -> Rule | None:
        """Check what only the merged rule can show, and freeze it; None after a fault."""
        self.report.rule = merged.name
        if "when" not in merged.fields:
            if "when" not in merged.faulty:
                self.report.add(merged.place, "when is missing: no file says when this rule fires")
            return None
        self._check_message(merged)
        return _freeze(merged)

    def _check_message(self, merged: _Merged) -> None:
        when, message = merged.fields["when"], merged.fields.get("message")
        if message is None or not isinstance(message.node, Scalar):
            return
        for fault in check_message(message.value, when.value):
            at = message.node.at(fault.offset)
            if at.file in {when.node.place.file, merged.place.file}:
                self.report.add(at, f"message: {fault.what}")
            else:
                self.report.add(when.node.place, f"the message at {at} does not fit: {fault.what}")

    def problems(self) -> list[Problem]:
        """Give all faults, file by file, from top to bottom."""
        files = list(dict.fromkeys(problem.place.file for problem in self.report.problems))

        def order(problem: Problem) -> tuple[int, int, int]:
            return files.index(problem.place.file), problem.place.line, problem.place.column

        return sorted(self.report.problems, key=order)


_NAMES = {"when": "condition", "for": "hold", "action": "ladder"}
"""Fields of a rule that Python calls otherwise."""


def _freeze(merged: _Merged) -> Rule:
    values: dict[str, Any] = {_NAMES.get(key, key): found.value for key, found in merged.fields.items()}
    return Rule(**values, place=merged.place)


def read_text(path: Path, label: str, place: Place | None = None) -> str:
    """Read a text file of at most 1 MiB; DocumentError, at `place` if there is no such file."""
    at = place or Place(label, 1, 1)
    try:
        data = _bytes(path)
    except FileNotFoundError:
        near = nearest(path.name, pack_names())
        what = say("no such file", expected="a file or a pack", got=quote(label, 120), near=near)
        raise DocumentError(Problem(at, what)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = say("cannot be read", expected="a file", got=f"{quote(label, 120)}: {reason}")
        raise DocumentError(Problem(at, what)) from None
    return decode(data, label)


def _bytes(path: Path) -> bytes:
    """Read a regular file, a byte more than is allowed at most. A pipe or a device would never end."""
    if not path.exists():
        raise FileNotFoundError
    if not path.is_file():
        raise OSError(0, "it is no file")
    with path.open("rb") as file:
        return file.read(LARGEST + 1)
