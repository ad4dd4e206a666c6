"""Attempts that have to do better than the best one before them. Without torch.

Flow: an attempt whose pace was held has ended. It may be far from what another pace would give, which
nothing in its own signals tells. While attempts and budget are left, challengers try the pace above, from
another initialisation where that matters, and the one below; each ends as soon as it does worse. The best
one stays. An attempt that no rule has ended though it did badly is challenged as well; one that needed no
remedy is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from stepguard.recover.attempt import Attempt
from stepguard.recover.curve import behind

Result = TypeVar("Result")

LEAST = 50
"""Steps of the shortest training of which a loss curve says anything."""
FACTORS = (3.0, 0.5)
"""The paces of the challengers, relative to that of the best attempt."""
STUCK = (10.0, 0.5)
"""The same where the best attempt has learned next to nothing."""
DOUBTED = (1.0, 0.3, 3.0)
"""The same, relative to the pace that would be held after a best attempt whose pace was not."""
FASTER = "lsuv"
"""How a faster challenger is initialised where the best attempt was left as it came: it bears more.

Where normalisations even out the layers, as it came is as good, if anything was learned.
"""
ROOM = 0.05
"""What is left of a loss, of the least that an attempt began with, below which another is not worth it."""


class Race(Generic[Result]):
    """The attempts of one call of `supervise`, and the best of those that have ended.

    Args:
        budget: the steps that all attempts together may take, relative to those of the best one.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._steps = 0
        self._tried: list[tuple[str | None, float]] = []
        """Initialisation and pace of each attempt whose pace was held."""
        self._first = math.inf
        """The least loss that an attempt began with."""
        self.best: tuple[Attempt, Result] | None = None

    @property
    def result(self) -> Result:
        """What the best attempt returned; there has to be one."""
        assert self.best is not None
        return self.best[1]

    def over(self, attempt: Attempt) -> None:
        """An attempt is over, however it ended."""
        self._steps += len(attempt.curve)
        self._first = min(self._first, attempt.curve.first)
        if attempt.pace is not None:
            self._tried.append((attempt.init, attempt.pace))

    def completed(self, attempt: Attempt, result: Result) -> None:
        """An attempt was completed: the best so far, unless its loss says otherwise."""
        self.over(attempt)
        if attempt.best is None or not behind(attempt.curve, attempt.best, len(attempt.best)):
            self.best = attempt, result

    def challenger(self, attempt: Attempt) -> Attempt | None:
        """The attempt after this one, to do better than the best one; None if there is none to be made."""
        if self.best is None or attempt.last or attempt.handed:
            return None
        best, _ = self.best
        steps = len(best.curve)
        learned = best.curve.fell_to(ROOM, of=self._first)
        if steps < LEAST or self._steps + steps > self._budget * steps or learned:
            return None
        stuck = best.curve.stuck
        if best.pace is None:
            base, factors = best.next(best.doubt), DOUBTED
        else:
            base, factors = best, STUCK if stuck else FACTORS
        changed = next(self._changes(base, factors, even=base.normalised and not stuck), None)
        if changed is None:
            return None
        init, pace = changed
        same = {name: getattr(base, name) for name in ("seed", "lr_scale", "clip")}
        return replace(attempt.next({}), best=best.curve, init=init, pace=pace, **same)

    def _changes(
        self, base: Attempt, factors: Sequence[float], *, even: bool
    ) -> Iterator[tuple[str | None, float]]:
        """Initialisation and pace beside those of an attempt which were not tried; none without a pace."""
        for factor in factors if base.pace is not None else ():
            init = base.init or (FASTER if factor > 1.0 and not even else None)
            pace = float(f"{factor * (base.pace or 0.0):.2g}")
            near = (tried == init and pace / 2 < at < 2 * pace for tried, at in self._tried)
            if pace < 1.0 and not any(near):
                yield init, pace
