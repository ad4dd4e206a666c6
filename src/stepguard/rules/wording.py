"""How a fault is said: what is wrong, what was expected, what was found, and the nearest right word."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, words: Iterable[str]) -> str | None:
    """Find the right word that looks most like `word`, whatever its case; None if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in words}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def say(what: str, *, expected: str = "", got: str = "", near: str | None = None) -> str:
    """Put a fault into one sentence.

    >>> say("unknown signal", expected="a signal", got="'los'", near="loss")
    "unknown signal (expected a signal, got 'los'; did you mean 'loss'?)"
    """
    parts = [f"expected {expected}" if expected else "", f"got {got}" if got else ""]
    inside = "; ".join(
        part for part in (", ".join(filter(None, parts)), f"did you mean '{near}'?" if near else "") if part
    )
    return f"{what} ({inside})" if inside else what


def quote(text: str, limit: int = 40) -> str:
    """Quote a user's text for a message: one line, printable, cut to `limit` characters.

    >>> quote("a" * 60, 8)
    "'aaaaaaa…'"
    """
    shown = ascii(text if len(text) <= limit else text[: limit - 1])
    return shown if len(text) <= limit else f"{shown[:-1]}…{shown[-1]}"


def listed(words: Iterable[str]) -> str:
    """List words as a person does: `a, b or c`."""
    *head, last = list(words)
    return f"{', '.join(head)} or {last}" if head else last


def plural(count: int, noun: str) -> str:
    """Give a count with its noun: `1 step`, `2 steps`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
