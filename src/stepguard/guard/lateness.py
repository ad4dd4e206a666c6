"""Steps that are judged at the next one: their numbers arrive, and what was decided of them is done.

Flow: in comes what the observer gives late; out goes, to all who are told, the same, and whether the step at
hand must be left out.
"""

from __future__ import annotations

from collections.abc import Callable

from stepguard.errors import TrainingStopped
from stepguard.guard.acting import Acting
from stepguard.guard.snapshots import Snapshots
from stepguard.recover.observer import Observer
from stepguard.recover.recovery import Observation
from stepguard.report.faults import Faults


class Lateness:
    """What a guard does of steps that were begun."""

    def __init__(
        self,
        observer: Observer,
        snapshots: Snapshots,
        *,
        publish: Callable[[Observation], None],
        act: Acting,
        faults: Faults,
    ) -> None:
        self._observer, self._snapshots = observer, snapshots
        self._publish, self._act, self._faults = publish, act, faults
        self._arrived: Observation | None = None
        """What was not acted upon yet."""
        self._skips_next = False

    def arrive(self) -> None:
        """Wait for the numbers of the step that was begun, and tell them."""
        try:
            arrived = self._observer.late()
            if arrived is not None:
                self._arrived = arrived
                self._publish(arrived)
        except Exception as fault:
            self._faults(fault)

    def act(self) -> bool:
        """Do what was decided of that step; True if the one at hand must not happen.

        Raises:
            TrainingStopped: the attempt ends.
        """
        self.arrive()
        skips, self._skips_next = self._skips_next, False
        arrived, self._arrived = self._arrived, None
        return skips if arrived is None else self._act(arrived)

    def catch_up(self) -> None:
        """The same between two steps: all is done at once, but for leaving out the next one."""
        try:
            self._skips_next = self.act()
            if self._snapshots.going_back is not None:
                self._skips_next = False
                self._snapshots.after()
                self._observer.stand()
        except TrainingStopped:
            raise
        except Exception as fault:
            self._faults(fault)

    def forget(self) -> None:
        """Act upon nothing that has arrived."""
        self.arrive()
        self._arrived, self._skips_next = None, False
