"""Which guard speaks, where several are open in one process."""

from __future__ import annotations

from itertools import count
from weakref import WeakSet


class Mark:
    """The name of a guard's model; shown once another guard has been open beside it.

    Models of one class are numbered: `Linear`, `Linear 2`.
    """

    def __init__(self, name: str) -> None:
        beside = list(_open)
        taken = {mark.name for mark in beside}
        names = (name if number == 1 else f"{name} {number}" for number in count(1))
        self.name = next(each for each in names if each not in taken)
        self.shown = False
        _open.add(self)
        for mark in (*beside, self) if beside else ():
            mark.shown = True

    def __str__(self) -> str:
        """The name in brackets; empty for a guard that was always alone."""
        return f"[{self.name}]" if self.shown else ""

    def close(self) -> None:
        """The guard is no longer open."""
        _open.discard(self)


_open: WeakSet[Mark] = WeakSet()
"""Those of this process; a guard that was dropped without being closed is none."""
