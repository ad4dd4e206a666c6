"""From the text of a condition to Python's syntax tree, within bounds that are checked before parsing."""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from stepguard.errors import StepguardError
from stepguard.rules.wording import plural, quote, say

LONGEST_TEXT = 4_000
"""Characters of a condition."""
DEEPEST = 40
"""Brackets inside brackets, and operations inside operations."""
MOST_FAULTS = 100
"""Faults of a condition; there is no use in more."""

_ALLOWED = re.compile(r"[A-Za-z0-9_.+\-*/(),=<>!\s]", re.ASCII)
_PIECE = re.compile(r"'[^']*'|\"[^\"]*\"|[\[{][^\[\]{}'\"]*[\]}]|.", re.DOTALL)
"""A character, or what it takes one fault to refuse: a string, a pair of brackets of no use here."""
_UNFINISHED = re.compile(r"([-+*/<>=!,(]|\b(and|or|not))\s*$")
_HINTS = {
    "%": "write a share as a number, 0.3 for 30 %",
    "&": "write 'and'",
    "|": "write 'or'",
    "~": "write 'not'",
    "^": "write '**' for a power",
    "#": "comments stand outside the condition",
    "[": "there are no lists and no subscripts",
    "{": "there are no braces",
    "'": "there are no strings, and a number stands without quotes",
    '"': "there are no strings, and a number stands without quotes",
    ":": "there is no ':' here",
    "@": "there is no '@' here",
    ";": "a condition is one expression",
}


class Fault(NamedTuple):
    """One thing that is wrong with a condition."""

    offset: int
    """Characters before it in the text."""
    what: str


class ExpressionError(StepguardError):
    """A condition that cannot be used; `faults` holds what is wrong with it, in the order of the text."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(sorted(set(faults))[:MOST_FAULTS])
        super().__init__("\n".join(f"{fault.offset}: {fault.what}" for fault in self.faults))


class Parsed(NamedTuple):
    """A syntax tree, and where its text begins within the whole."""

    body: ast.expr
    shift: int


def parse(text: str) -> Parsed:
    """Parse an expression; ExpressionError with every fault that can be seen before names are looked up."""
    if len(text) > LONGEST_TEXT:
        size = say("too long", expected=f"at most {LONGEST_TEXT:,} characters", got=f"{len(text):,}")
        raise ExpressionError([Fault(0, size)])
    faults = [*_characters(text), *_brackets(text)]
    if not text.strip():
        faults.append(Fault(0, say("empty", expected="a condition such as 'loss > 5'")))
    if faults:
        raise ExpressionError(faults)
    shift = len(text) - len(text.lstrip())
    tree = _python(re.sub(r"\s", " ", text.strip()), shift)
    _check_depth(tree.body, shift)
    return Parsed(tree.body, shift)


def _python(text: str, shift: int) -> ast.Expression:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ExpressionError([_syntax_fault(error, text, shift)]) from None
    except (MemoryError, RecursionError):
        raise ExpressionError([Fault(shift, _too_deep())]) from None


def _syntax_fault(error: SyntaxError, text: str, shift: int) -> Fault:
    offset = min(max((error.offset or 1) - 1, 0), len(text))
    equals = re.search(r"(?<![=<>!])=(?!=)", text)
    if equals and "keyword" not in error.msg and _outside_calls(text, equals.start()):
        what = say("'=' sets nothing here", expected="a comparison", got="'='", near="==")
        return Fault(shift + equals.start(), what)
    if offset >= len(text.rstrip()) or _UNFINISHED.search(text):
        return Fault(shift + len(text), say("ends too early", expected="a number, a signal or a call"))
    found = re.compile(r"\w+|\S").search(text, offset)
    word = f"'{found.group()[:40]}'" if found else "nothing"
    return Fault(shift + offset, say("cannot be read here", expected="an operator or the end", got=word))


def _outside_calls(text: str, position: int) -> bool:
    return text.count("(", 0, position) == text.count(")", 0, position)


def _characters(text: str) -> Iterator[Fault]:
    for piece in _PIECE.finditer(text):
        if not _ALLOWED.match(piece.group()):
            yield Fault(piece.start(), _unknown_piece(piece.group()))


def _unknown_piece(piece: str) -> str:
    character = piece[0]
    if character in _HINTS:
        return f"{quote(piece)} is not part of the language: {_HINTS[character]}"
    if character.isascii():
        return f"{character!a} is not part of the language"
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    plain = unicodedata.normalize("NFKC", character)
    near = plain if len(plain) == 1 and plain.isascii() and plain.isprintable() else None
    return say("a character that only looks right", expected="plain ASCII", got=name, near=near)


def _brackets(text: str) -> Iterator[Fault]:
    opened: list[int] = []
    for match in re.finditer(r"[()]", text):
        if match.group() == "(":
            opened.append(match.start())
        elif opened:
            opened.pop()
        else:
            yield Fault(match.start(), "this ')' closes nothing")
        if len(opened) > DEEPEST:
            yield Fault(match.start(), _too_deep())
            return
    yield from (Fault(offset, "this '(' is never closed") for offset in opened)


def _check_depth(root: ast.expr, shift: int) -> None:
    pending: list[tuple[ast.AST, int]] = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        if depth > DEEPEST:
            raise ExpressionError([Fault(shift + getattr(node, "col_offset", 0), _too_deep())])
        pending.extend((child, depth + 1) for child in ast.iter_child_nodes(node))


def _too_deep() -> str:
    return say("nested too deeply", expected=f"at most {plural(DEEPEST, 'level')}")
