"""At which steps everything is measured. Pure."""

from __future__ import annotations

from typing import Literal

from stepguard.errors import StepguardError

YOUNG = 200
"""Steps at the beginning that "auto" measures one by one."""
LATER = 10
"""From one measured step of "auto" to the next, once young is over and while nothing is pending."""


class Cadence:
    """How often all statistics are taken: every so many steps, or "auto".

    Raises:
        StepguardError: `every` is neither "auto" nor a whole number from 1.
    """

    def __init__(self, every: int | Literal["auto"]) -> None:
        fits = every == "auto" or (isinstance(every, int) and not isinstance(every, bool) and every >= 1)
        if not fits:
            raise StepguardError(f'every: expected "auto" or a whole number from 1, got {every!r}')
        self._every = every

    def measures(self, step: int, *, quiet: bool) -> bool:
        """Whether that step is measured; `quiet` tells that no alert is pending or firing."""
        if self._every == "auto":
            return step < YOUNG or not quiet or step % LATER == 0
        return step % self._every == 0
