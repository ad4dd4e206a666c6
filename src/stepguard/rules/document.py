"""YAML with places, and without its traps: text in, nodes out, every scalar as it stands in the file.

Nothing is ever constructed: no tags, no aliases, no guess at types. The reader of a field decides what its
text means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from stepguard.errors import Place, Problem
from stepguard.rules.wording import quote, say

LARGEST = 1 << 20
"""Bytes of a file."""
_DEEPEST = 12
_MOST_NODES = 50_000

_CONTROL = re.compile(r"[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_TAB = re.compile(r"^ *\t[ \t]*(?=[^\s#])", re.MULTILINE)

# Only the parser of it is used, never its constructor. The one in C is 15 times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Scalar:
    """A text that stands in the file."""

    text: str
    place: Place
    plain: bool
    """Neither quoted nor a block: where YAML itself would guess a type."""
    source: str
    """As it stands in the file, with quotes and indentation."""
    cut: bool
    """Plain, and ended by a comma: maybe in the middle of what was meant."""

    def at(self, offset: int) -> Place:
        """Find the place of a character of `text`, through quotes, folds and indentation."""
        visible = len("".join(self.text[:offset].split()))
        index = self._visible[visible] if visible < len(self._visible) else len(self.source.rstrip())
        return _shifted(self.place, self.source[:index])

    @cached_property
    def _visible(self) -> list[int]:
        """Where in the source each character begins that is not blank."""
        return [index for index, token in _tokens(self.source) if not _blank(token)]


@dataclass(frozen=True)
class Items:
    """A list."""

    place: Place
    items: list[Node] = field(default_factory=list["Node"])


@dataclass(frozen=True)
class Entries:
    """A mapping; its keys are scalars, and differ."""

    place: Place
    entries: dict[str, tuple[Scalar, Node]] = field(default_factory=dict[str, "tuple[Scalar, Node]"])


Node = Scalar | Items | Entries


class DocumentError(Exception):
    """A text that is no document; `problem` says where and why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


@dataclass(frozen=True)
class Document:
    """A parsed file: its root, and the faults that did not keep it from being read."""

    root: Node
    problems: tuple[Problem, ...]


def decode(data: bytes, file: str) -> str:
    """Turn the bytes of a file into text with plain line ends; DocumentError for what is no text."""
    if len(data) > LARGEST:
        raise _error(Place(file, 1, 1), say("too large a file", expected="at most 1 MiB", got="more"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(file, data[: error.start].decode("utf-8-sig", "replace"))
        what = say("not a text file", expected="UTF-8", got=f"the byte 0x{data[error.start]:02x}")
        raise _error(place, what) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse(text: str, file: str) -> Document:
    """Parse one YAML document; DocumentError if there is none to be had."""
    control = _CONTROL.search(text)
    if control:
        what = say("not a text file", expected="printable characters", got=f"{control.group()!a}")
        raise _error(_place(file, text[: control.start()]), what)
    tab = _TAB.search(text)
    if tab:
        what = say("a tab in the indentation", expected="spaces", got="a tab")
        raise _error(_place(file, text[: tab.start() + tab.group().index("\t")]), what)
    try:
        return _Composer(text, file).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)
        raise _error(place, f"not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _error(Place(file, 1, 1), f"not YAML: {quote(str(error), 120)}") from None


def _events(text: str) -> Iterator[yaml.Event]:
    loader: Any = _Loader(text)
    while loader.check_event():
        yield loader.get_event()


class _Composer:
    """Builds nodes from the parser's events, so that depth, size, tags and aliases are checked on the way."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._events = _events(text)
        self._problems: list[Problem] = []
        self._nodes = 0

    def document(self) -> Document:
        start = [next(self._events), next(self._events)]
        if isinstance(start[1], yaml.StreamEndEvent):
            raise _error(Place(self._file, 1, 1), say("an empty file", expected="'version: 1' and rules"))
        root = self._node(next(self._events), 0)
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _error(
                self._place(after), say("a second document", expected="one document a file", got="'---'")
            )
        return Document(root, tuple(self._problems))

    def _place(self, event: yaml.Event) -> Place:
        return Place(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        place = self._place(event)
        self._nodes += 1
        if depth > _DEEPEST or self._nodes > _MOST_NODES:
            limit = f"at most {_DEEPEST} levels and {_MOST_NODES:,} values"
            raise _error(place, say("nested too deeply or too long", expected=limit))
        if isinstance(event, yaml.AliasEvent):
            raise _error(place, say("an alias", expected="the value itself", got=quote(f"*{event.anchor}")))
        self._refuse(event, place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(place, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self._entries(place, depth)
        return self._scalar(event, place)

    def _refuse(self, event: yaml.Event, place: Place) -> None:
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None:
            self._problem(place, say("an anchor", expected="no anchors", got=quote(f"&{anchor}")))
        if tag is not None:
            self._problem(place, say("a tag", expected="no tags", got=quote(tag, 80)))

    def _problem(self, place: Place, what: str) -> None:
        self._problems.append(Problem(place, what))

    def _scalar(self, event: yaml.Event, place: Place) -> Scalar:
        assert isinstance(event, yaml.ScalarEvent)
        source = self._text[event.start_mark.index : event.end_mark.index]
        if _CONTROL.search(event.value):
            self._problem(place, say("an escape that makes no text", expected="printable characters"))
        cut = not event.style and self._text[event.end_mark.index : event.end_mark.index + 1] == ","
        return Scalar(event.value, place, not event.style, source, cut)

    def _items(self, place: Place, depth: int) -> Items:
        items = Items(place)
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.items.append(self._node(event, depth + 1))
        return items

    def _entries(self, place: Place, depth: int) -> Entries:
        found = Entries(place)
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            if not isinstance(key, Scalar):
                self._problem(key.place, say("a key that is no word", expected="a word before the ':'"))
            elif key.text in found.entries:
                before = found.entries[key.text][0].place
                what = f"{quote(key.text)} stands twice (first at line {before.line})"
                self._problem(key.place, what)
            else:
                found.entries[key.text] = (key, value)
        return found


_ESCAPES = re.compile(r"\\x..|\\u.{4}|\\U.{8}|\\\n\s*|\\.|.", re.DOTALL)
_BLANK_ESCAPES = {"\\n", "\\t", "\\r", "\\ ", "\\_", "\\\t"}


def _blank(token: str) -> bool:
    return not token.strip() or token in _BLANK_ESCAPES or token.startswith("\\\n")


def _tokens(source: str) -> Iterator[tuple[int, str]]:
    """Split a scalar's source into what stands for one character each."""
    if source[:1] in {"|", ">"}:
        begin = source.find("\n") + 1
        yield from ((begin + index, character) for index, character in enumerate(source[begin:]))
    elif source[:1] == '"':
        yield from ((match.start(), match.group()) for match in _ESCAPES.finditer(source, 1, len(source) - 1))
    elif source[:1] == "'":
        matches = re.compile(r"''|.", re.DOTALL).finditer(source, 1, len(source) - 1)
        yield from ((match.start(), match.group()) for match in matches)
    else:
        yield from enumerate(source)


def _shifted(place: Place, before: str) -> Place:
    lines = before.count("\n")
    column = len(before) - before.rfind("\n") if lines else place.column + len(before)
    return Place(place.file, place.line + lines, column)


def _place(file: str, before: str) -> Place:
    return _shifted(Place(file, 1, 1), before)


def _error(place: Place, what: str) -> DocumentError:
    return DocumentError(Problem(place, what))
