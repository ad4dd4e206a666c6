"""What a guard tells of each step, and to whom: reports, subscribers, and its own memory of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from stepguard.recover.decision import Decision
from stepguard.recover.recovery import Observation
from stepguard.report.diagnosis import Diagnosis
from stepguard.report.faults import Faults
from stepguard.report.session import Reports
from stepguard.rules.alert import Change

KEPT = 10_000
"""Alerts and decisions that a guard remembers; the run file has them all."""
Subscriber = Callable[[Observation], object]


class Telling:
    """Tells each observation. What fails here is said, and costs the telling only."""

    def __init__(self, reports: Reports, faults: Faults) -> None:
        self._reports, self._faults = reports, faults
        self.subscribers: list[Subscriber] = []
        self.notified: list[Callable[[Diagnosis], object]] = []
        self.alerts: deque[Change] = deque(maxlen=KEPT)
        """Those that began to fire."""
        self.decisions: deque[Decision] = deque(maxlen=KEPT)
        self._found: dict[str, Diagnosis] = {}
        """The last diagnosis of each rule."""

    def __call__(self, observation: Observation) -> None:
        """Tell one step."""
        self.alerts.extend(change for change in observation.changes if change.state == "firing")
        if observation.decision is not None:
            self.decisions.append(observation.decision)
        try:
            self._found |= {diagnosis.rule: diagnosis for diagnosis in self._reports(observation)}
        except Exception as fault:  # telling may fail, acting must not
            self._faults(fault)
        for rule in observation.lacking:
            text = f"rule {rule!r} would roll back, but no snapshot is certified healthy yet"
            (self._faults.say if observation.decision is None else self._reports.note)(text)
        self._faults.tell(self.subscribers, observation)

    def notify(self, observation: Observation) -> None:
        """Call whoever asked for the diagnoses of rules that take the action `notify`."""
        for rule in observation.notified:
            if rule in self._found:
                self._faults.tell(self.notified, self._found[rule])

    def diagnosis(self, decision: Decision) -> str:
        """Why something was decided, as a person reads it."""
        found = self._found.get(decision.rule)
        return decision.reason if found is None else str(replace(found, decision=decision))
