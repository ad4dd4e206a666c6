"""When a training counts as hung. Pure: the time is an argument.

A sign of life is a step that comes to the guard, a forward pass of the guarded model (so that evaluating is
no hang), `Guard.log` and a snapshot. Waited for are at least `limit` seconds, twice the longest pause that
this attempt has survived so far, and ten times as long before the first step, where data are prepared and
models compiled. After the guard was closed nothing is waited for.
"""

from __future__ import annotations

from stepguard.recover.handover import CLOSED, QUIET, Beat

STARTUP = 10.0
"""How much longer the first step may take."""
_PAUSES = 2.0


class HangWatch:
    """Looks at the heartbeat again and again.

    Args:
        limit: seconds; None never finds a hang.
        tick: seconds between two looks. A longer time between them counts as two ticks only: the machine was
            asleep, or the supervisor stopped, and so was perhaps the training.
    """

    def __init__(self, limit: float | None, tick: float) -> None:
        self._limit, self._tick = limit, tick
        self._signs = 0
        self._looked: float | None = None
        self._idle = self._longest = 0.0

    def look(self, beat: Beat, now: float) -> float | None:
        """The seconds without a sign of life if they are too many, else None."""
        passed = 0.0 if self._looked is None else min(now - self._looked, 2 * self._tick)
        self._looked = now
        if beat.signs != self._signs:
            # What came before the first step is no pause to learn from.
            if self._signs and beat.phase != QUIET:
                self._longest = max(self._longest, self._idle)
            self._signs, self._idle = beat.signs, 0.0
            return None
        self._idle += passed
        return self._idle if self._idle > self._allowed(beat.phase) else None

    def _allowed(self, phase: int) -> float:
        if self._limit is None or phase == CLOSED:
            return float("inf")
        return self._limit * STARTUP if phase == QUIET else max(self._limit, _PAUSES * self._longest)
