"""Series of a rule test, in promtool's notation.

2.3             one value; nan and inf too
2.3x4           the value and four more of it
2.3+0.1x4       2.3 and four more, each 0.1 more than the last; - for less
2.3*2x4         2.3 and four more, each twice the last
_  _x4          nothing measured, at one step or at four
"""

from __future__ import annotations

import math
import re

from stepguard.rules.expression import Fault
from stepguard.rules.wording import quote, say

LONGEST = 100_000
"""Values of a series."""

_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf|nan)"
_TOKEN = re.compile(rf"(?:(_)|({_NUMBER})(?:([-+*])({_NUMBER}))?)(?:x(\d+))?", re.ASCII)


class SeriesError(Exception):
    """A series that cannot be read; `fault` says where and why."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.what)


def read_series(text: str) -> list[float | None]:
    """Read a series, None where nothing is measured; SeriesError for what is none.

    >>> read_series("1+2x3 _ 8*0.5x2")
    [1.0, 3.0, 5.0, 7.0, None, 8.0, 4.0, 2.0]
    """
    values: list[float | None] = []
    for word in re.finditer(r"\S+", text):
        match = _TOKEN.fullmatch(word.group())
        if match is None or (match[3] and not match[5]):
            what = say("a series", expected="0.1, 0.1+0.05x20, 2*4x5, _ or nan", got=quote(word.group()))
            raise SeriesError(Fault(word.start(), what))
        more = int(match[5] or 0) if len(match[5] or "") < 7 else LONGEST
        if len(values) + more >= LONGEST:
            limit = f"at most {LONGEST:,} values"
            raise SeriesError(Fault(word.start(), say("a series", expected=limit, got="more")))
        values += _expand(match, more)
    return values


def _expand(match: re.Match[str], more: int) -> list[float | None]:
    if match[1]:
        return [None] * (more if match[5] else 1)
    start, sign, change = float(match[2]), match[3], float(match[4] or 0)
    if sign == "*":
        return [start * _power(change, index) for index in range(more + 1)]
    step = -change if sign == "-" else change
    return [start + step * index if index else start for index in range(more + 1)]


def _power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except OverflowError:
        return math.inf
