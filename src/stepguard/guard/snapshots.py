"""What a guard does with snapshots: takes them at step boundaries, goes back, resumes, leaves one."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from stepguard.errors import RunFileError, StepguardError
from stepguard.guard.stepping import Stepping
from stepguard.recover.attempt import Attempt
from stepguard.recover.buffers import Buffers
from stepguard.recover.decision import Decision
from stepguard.recover.generators import set_generators
from stepguard.recover.keeper import Keeper
from stepguard.recover.link import asked_by, leaving
from stepguard.recover.observer import Observer
from stepguard.recover.protocols import Scheduler
from stepguard.recover.ranks import Ranks
from stepguard.recover.remedies import scale_lr
from stepguard.recover.resuming import broken_off, reached, take_over, unfinished
from stepguard.recover.shelf import Grade, resumable
from stepguard.recover.snapshot import Snapshot
from stepguard.report.faults import Faults
from stepguard.report.session import Reports
from stepguard.series.runfile import AttemptRecord


class Snapshots:
    """What a guard does with its keeper."""

    def __init__(
        self,
        keeper: Keeper,
        optimizer: Optimizer,
        scheduler: Scheduler | None,
        *,
        observer: Observer,
        stepping: Stepping,
        reports: Reports,
        ranks: Ranks,
        faults: Faults,
        attempt: Attempt,
    ) -> None:
        self.keeper, self._optimizer, self._scheduler = keeper, optimizer, scheduler
        self._observer, self._stepping = observer, stepping
        self._reports, self._ranks = reports, ranks
        self._faults, self._attempt = faults, attempt
        self._order = len(attempt.guards)
        self.buffers = Buffers(keeper.parts.model)
        """As they were before a step that may have to be skipped."""
        self.going_back: Decision | None = None
        """A rollback that was decided, and waits for the end of the step that it skips."""
        self._resumed: Snapshot | None = None
        self._stopping: BaseException | None = None
        """What all ranks leave the training by, since a signal asked one of them."""

    def state_dict(self) -> dict[str, Any]:
        """What the guard knows and does: its windows, alerts and ladders, and the remedy in force."""
        remedy = {**self._stepping.state_dict(), "lr_scale": self.keeper.lr_scale}
        return {**self._observer.state_dict(), "remedy": remedy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; a state without a remedy leaves that as it is."""
        self._observer.load_state_dict(state)
        if "remedy" in state:
            self._stepping.load_state_dict(state["remedy"])
            self.keeper.lr_scale = float(state["remedy"]["lr_scale"])

    def before(self, step: int) -> None:
        """A step is about to be judged and taken."""
        if step >= self.keeper.next:
            self.keeper.before(step)
        if self._ranks.count > 1:
            self._observer.words = self.keeper.words(asked_by(self._attempt.link.stopping))

    def heard(self) -> None:
        """The ranks have told each other: take snapshots as all of them do, and leave where one has to."""
        if self._ranks.count == 1:
            return
        words = self._observer.words
        self.keeper.heard(self._observer.step - 1, words)
        if words.stopping:
            self._stopping = self._attempt.link.stopping or leaving(int(words.stopping))

    @property
    def _asked(self) -> BaseException | None:
        """What the training is to be left by: where there are several ranks, once all of them know."""
        return self._attempt.link.stopping if self._ranks.count == 1 else self._stopping

    def after(self) -> None:
        """A step is over: go back where that was decided, and capture what the next iteration moves."""
        step = self._observer.step
        try:
            if self.going_back is not None:
                self._roll_back(self.going_back)
            if step >= self.keeper.next:
                self.keeper.after(step)
            if self._asked is not None:
                self.keeper.prepare(step)
        except Exception as fault:
            self._faults(fault)
        finally:
            self.going_back = None

    def _roll_back(self, decision: Decision) -> None:
        """Put everything back; what the guard has made of the learning rate since then stays."""
        before = self.keeper.roll_back(decision.step)
        self.buffers.renew()
        self.keeper.lr_scale *= float(decision.settings.get("lr", 1.0))
        if self.keeper.lr_scale != before:
            scale_lr(self._optimizer, self._scheduler, self.keeper.lr_scale / before)

    def scale_lr(self, by: float) -> None:
        """Scale the learning rate, so that it lasts through a rollback."""
        scale_lr(self._optimizer, self._scheduler, by)
        self.keeper.lr_scale *= by

    def stopping(self, step: int) -> BaseException | None:
        """What ends the training here, once a snapshot is written, where a signal asked for it."""
        stopping = self._asked
        if stopping is None or not self.keeper.ready(step):
            return None
        if self.keeper.writer.run_path is not None:
            self.keeper.write_now(step, self._grade(), {"asked": repr(stopping)})
        return stopping

    def write(self) -> Path | None:
        """Write a snapshot now, because the training asks for it."""
        return self.keeper.write_now(self._observer.step, self._grade(), {"asked": "by the training"})

    def _grade(self) -> Grade:
        return "evidence" if self._observer.firing else "quiet"

    def write_evidence(self, decision: Decision, diagnosis: str) -> None:
        """Write a snapshot of what a rule has found."""
        evidence: Mapping[str, Any] = {
            "rule": decision.rule,
            "layer": decision.layer,
            "reason": decision.reason,
            "diagnosis": diagnosis,
        }
        self.keeper.write_now(self._observer.boundary, "evidence", evidence)

    def resume(self) -> int:
        """Go on with a run that was broken off; the step to go on with, 0 for none.

        Raises:
            StepguardError: steps were taken already.
        """
        if self._resumed is None:
            if self._observer.step:
                raise StepguardError("resume(): expected no step before it, call it right after watch()")
            self._resumed = self._find()
        if self._resumed is None:
            return 0
        set_generators(self._resumed.parts["generators"])
        self._reports.note(
            f"goes on at step {self._resumed.step}; model, optimizer, its learning rate and the scheduler are"
            " those of the snapshot, whatever the script says"
        )
        return self._resumed.step

    def _find(self) -> Snapshot | None:
        """Find the newest snapshot that fits, of the newest run that was broken off, and load it.

        Rank 0 finds the run; the snapshot is one that every rank has of its own.
        """
        writer, before = self.keeper.writer, self.keeper.writer.run_path
        found = self._broken_off() if self._ranks.main else None
        told = None if found is None else (str(found[0].absolute()), found[1])
        told = self._ranks.of_main("broken off", told)
        if told is None:
            return None
        path, record = found or (Path(told[0]), AttemptRecord(*told[1]))
        own = self._ranks.beside(path)
        snapshot = self._newest(own, record) if writer.try_move(own) else self._newest(own, None)
        if snapshot is None or not self._go_on(path, record, snapshot):
            writer.move(before)
            return None
        return snapshot

    def _broken_off(self) -> tuple[Path, AttemptRecord] | None:
        """The run to go on with: the one that was named, or the newest that nobody writes."""
        own = self._reports.run_path
        if own is None:
            self._faults.say("resume() finds nothing: without a run folder no snapshots are written")
            return None
        named = self._attempt.resume
        if named is not None:
            record = broken_off(named)
            return None if record is None else (named, record)
        if self._attempt.handed or self._attempt.number > 1:
            return None
        runs = unfinished(own.parent, self._order)
        return next((run for run in runs if run[0] != own and self.keeper.writer.try_move(run[0])), None)

    def _newest(self, own: Path, record: AttemptRecord | None) -> Snapshot | None:
        """The newest snapshot that every rank has and can read; None without a record."""
        shelves = resumable(own, record.number) if record is not None else []
        told = self._ranks.gather("snapshots", [shelf[:3] for shelf in shelves]) or [[]]
        for shelf in shelves:
            if not all(list(shelf[:3]) in map(list, theirs) for theirs in told):
                continue
            snapshot = self.keeper.read(shelf)
            fits = snapshot is not None and snapshot.guard is not None
            if all(self._ranks.gather("fits", fits) or [False]):
                return snapshot
        if self._ranks.count > 1 and self._ranks.main:
            self._faults.say(f"no snapshot of {own} is there for each of {self._ranks.count} ranks")
        return None

    def _go_on(self, path: Path, record: AttemptRecord, snapshot: Snapshot) -> bool:
        """Make this training the one that left the snapshot; False, and a complaint, if its run is lost."""
        gone_on, step = True, reached(path, record.number) if self._ranks.main else None
        if self._ranks.main:
            try:
                self._reports.go_on(path, record, snapshot.step)
            except (RunFileError, OSError, sqlite3.Error) as fault:
                self._faults.say(f"the run {path} cannot be gone on with ({fault}); it begins anew")
                gone_on = False
        if not self._ranks.of_main("gone on", gone_on):
            return False
        take_over(self._attempt, record, self._order)
        self.keeper.go_on(snapshot)
        assert snapshot.guard is not None
        self.load_state_dict(snapshot.guard)
        self._record_resumed(snapshot, {"ended": record.outcome, "reached": step})
        return True

    def _record_resumed(self, snapshot: Snapshot, before: Mapping[str, Any]) -> None:
        self._reports.event("resumed", snapshot.step, {"step": snapshot.step, **before})
        newest = self.keeper.newest(snapshot.step)
        if newest is not None:
            self._reports.event("certified", snapshot.step, {"step": newest})
