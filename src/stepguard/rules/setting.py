"""The numbers that functions of the rule language take beside their argument."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A number that a function takes beside its argument."""

    name: str
    doc: str
    least: float
    whole: bool = False
    above: bool = False
    """Whether `least` itself is already too small."""
    default: float | None = None
    """None: must be given."""
    joint: float | None = None
    """The default inside a function of layers that asks many of them at once; None: the same."""
    at_most: str = ""
    """Another setting that this one must not exceed."""

    @property
    def expected(self) -> str:
        """What a person should write."""
        bound = f"above {self.least:g}" if self.above else f"of {self.least:g} or more"
        return f"a {'whole ' if self.whole else ''}number {bound}"

    def unless_given(self, *, joint: bool) -> float | None:
        """Give the default; `joint` is that of the function of layers around it."""
        return self.joint if joint and self.joint is not None else self.default

    def allows(self, value: float) -> bool:
        """Whether the number lies in the range; infinity and NaN never do."""
        large_enough = value > self.least if self.above else value >= self.least
        return math.isfinite(value) and large_enough and (not self.whole or value == int(value))
