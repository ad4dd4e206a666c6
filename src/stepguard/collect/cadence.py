"""At which steps everything is measured. Pure."""

from __future__ import annotations

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

    def __init__(self, every: object) -> None:
        self._every = LATER
        self._auto = every == "auto"
        if not self._auto:
            if not isinstance(every, int) or isinstance(every, bool) or every < 1:
                raise StepguardError(f'every: expected "auto" or a whole number from 1, got {every!r}')
            self._every = every

    @property
    def closest(self) -> int:
        """Steps from one measurement to the next where something is amiss."""
        return 1 if self._auto else self._every

    def measures(self, step: int, *, quiet: bool) -> bool:
        """Whether that step is measured; `quiet` tells that no alert is pending or firing."""
        closely = self._auto and (step < YOUNG or not quiet)
        return closely or step % self._every == 0
