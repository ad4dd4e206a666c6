"""What a guard does of what was decided, before the weights are touched."""

from __future__ import annotations

from collections.abc import Callable

from stepguard.errors import RestartRequested, TrainingHalted
from stepguard.guard.snapshots import Snapshots
from stepguard.guard.telling import Telling
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Decision
from stepguard.recover.observer import Observer
from stepguard.recover.ranks import Ranks
from stepguard.recover.recovery import Observation
from stepguard.report.summary import KEPT

_CHANGES = ("skip", "rollback", "lower_lr")
"""What no rank does alone: its weights would not be those of the others any more."""


class Acting:
    """Carries decisions out. `close` ends the guard, with the outcome in words."""

    def __init__(
        self,
        observer: Observer,
        snapshots: Snapshots,
        telling: Telling,
        *,
        ranks: Ranks,
        attempt: Attempt,
        close: Callable[[str], None],
    ) -> None:
        self._observer, self._snapshots, self._telling = observer, snapshots, telling
        self._ranks, self._attempt, self._close = ranks, attempt, close

    def __call__(self, observation: Observation) -> bool:
        """Do what was decided; True if the step at hand must not happen.

        It is the one that was observed, or the one after it where that comes late.

        Raises:
            TrainingStopped: the attempt ends.
        """
        decision = observation.decision or self._observer.surpassed
        if decision is not None and not decision.dry_run:
            self._telling.notify(observation)
            if decision.kind in _CHANGES and self._ranks.apart:
                return False
            if decision.kind == "skip":
                if not self._observer.left_out_there:
                    self._snapshots.buffers.put_back()
                return not self._observer.left_out_there
            if decision.kind == "rollback":
                self._snapshots.going_back = decision
                return True
            self._do(decision)
        if self._observer.measures and self._observer.at_once:
            self._snapshots.buffers.keep()
        return False

    def _do(self, decision: Decision) -> None:
        if decision.kind == "lower_lr":
            self._snapshots.scale_lr(float(decision.settings["by"]))
        elif decision.kind == "snapshot":
            self._snapshots.write_evidence(decision, self._telling.diagnosis(decision))
        elif decision.kind in ("restart", "halt"):
            self._stop(decision, self._telling.diagnosis(decision))

    def _stop(self, decision: Decision, diagnosis: str) -> None:
        """End the attempt, and not before all ranks are done with it."""
        if decision.kind == "halt" and self._snapshots.keeper.writer.run_path is not None:
            self._snapshots.write_evidence(decision, diagnosis)
        stopped = (
            TrainingHalted(diagnosis, step=decision.step, rule=decision.rule)
            if decision.kind == "halt"
            else RestartRequested(diagnosis, step=decision.step, rule=decision.rule, remedy=decision.settings)
        )
        self._observer.end()
        self._attempt.link.stop(stopped, self._attempt.standings)
        self._ranks.same(decision.step)
        self._close(f"{decision.kind if self._attempt.best is None else KEPT}: {decision.rule}")
        raise stopped
