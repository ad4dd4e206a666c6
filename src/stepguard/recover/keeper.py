"""Keeps the snapshots of one training: when they are taken, certified, and gone back to.

Flow: in come step boundaries and the alerts; out goes a candidate now and then, which becomes the newest
certified snapshot once the quiet time has passed without an alert of a rule that acts. One candidate waits at
a time, so two copies are in memory at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepguard.recover.agreement import Words
from stepguard.recover.certifying import acts, can_roll_back, quiet_time
from stepguard.recover.copies import copied, size
from stepguard.recover.parts import Parts, unhealthy
from stepguard.recover.ranks import Ranks
from stepguard.recover.shelf import Grade, Shelved, shelved
from stepguard.recover.snapshot import Snapshot, SnapshotError, read
from stepguard.recover.writer import Complain, Record, SnapshotWriter
from stepguard.rules.rule import Ruleset

SHARE = 0.005
"""Of the training's time that snapshots may take; above it the interval doubles."""
FIRST = 1
"""The step before which the first candidate is taken."""
NEVER = 2**62


class Keeper:
    """The snapshots of one guard.

    Args:
        parts: what the training is made of.
        rules: say how long it must be quiet, and whether anything may roll back.
        every: steps between full measurements where that is fixed, else 1.
        total_steps: planned length of the run, if known.
        attempt: the number of the attempt.
        run_path: the run file beside which snapshots are written; None keeps them in memory.
        state: gives the guard's own state.
        ranks: the other ranks of the training, which keep the same snapshots.
        record: writes an event to the run file: kind, step, fields.
        complain: told of what cannot be kept, and why.
    """

    def __init__(
        self,
        parts: Parts,
        rules: Ruleset,
        *,
        every: int,
        total_steps: int | None,
        attempt: int,
        run_path: Path | None,
        state: Callable[[], Mapping[str, Any]],
        ranks: Ranks,
        record: Record,
        complain: Complain,
    ) -> None:
        self.parts, self._attempt, self._ranks = parts, attempt, ranks
        self._state, self._record, self._complain = state, record, complain
        self._acting = {rule.name for rule in rules.rules if acts(rule)}
        self._quiet_time = self._interval = quiet_time(rules, every, total_steps)
        self._rolls_back = can_roll_back(rules)
        self.lr_scale = 1.0
        """What the guard has made of the learning rate, as a factor."""
        self.next = FIRST if self._rolls_back or run_path is not None else NEVER
        """The step at which something is due; the guard compares it with its own at each boundary."""
        self._due = FIRST
        self._early: tuple[int, dict[str, Any]] | None = None
        self._candidate: Snapshot | None = None
        self._held: Snapshot | None = None
        """The newest certified one, where it is kept in memory."""
        self._certified: list[int] = []
        """The steps of all that were certified."""
        self._spoiled = False
        """An alert is firing of a rule that acts."""
        self._refused = False
        """The last one was refused; that is said once."""
        self._taken: tuple[int, float] | None = None
        self._cost = 0.0
        self._budget = _budget()
        self.writer = SnapshotWriter(record, complain)
        self.writer.move(run_path)

    def after(self, step: int) -> None:
        """Capture, right after a step, what the next iteration moves; `step` is the one to come."""
        candidate = self._candidate
        free = candidate is None or step >= candidate.step + self._quiet_time
        if not free or step < self._due or self._spoiled:
            return
        needed = self.parts.size()
        if needed > self._budget:
            self._give_up(f"one takes {needed / 1e9:.1f} GB, at most {self._budget / 1e9:.1f} GB are allowed")
        else:
            self.prepare(step)

    def prepare(self, step: int) -> None:
        """Capture the early end of this boundary."""
        began = time.perf_counter()
        self._early = None
        try:
            self._early = step, self.parts.early()
        except Exception as fault:
            self._give_up(f"{type(fault).__name__}: {fault}")
        self._cost += time.perf_counter() - began

    def ready(self, step: int) -> bool:
        """Whether the early end of the boundary before this step was captured."""
        return self._early is not None and self._early[0] == step

    def before(self, step: int) -> None:
        """Certify or take a candidate, right before a step."""
        self._certify(step)
        if self.ready(step) and step >= self._due and not self._spoiled:
            try:
                self._take(step)
            except Exception as fault:
                self._give_up(f"{type(fault).__name__}: {fault}")
        self._plan(step)

    def _certify(self, step: int) -> None:
        candidate = self._candidate
        if candidate is None or step < candidate.step + self._quiet_time:
            return
        self._candidate = None
        self._cost += self.writer.finish(wait=False)
        written = self.writer.start(candidate)
        small = 2 * size(candidate.parts) <= self._budget
        self._held = candidate if self._rolls_back and (small or not written) else None
        self._record("certified", step, {"step": candidate.step})
        self._certified.append(candidate.step)

    def _take(self, step: int) -> None:
        began = time.perf_counter()
        snapshot = self.capture(step)
        bad = unhealthy(snapshot.parts)
        self._cost += time.perf_counter() - began
        self._pace(step)
        if bad is None:
            self._candidate = snapshot
        elif not self._refused:
            text = f"the snapshot of step {step} is refused: {bad} is not finite; older ones are kept"
            self._complain(text)
        self._refused = bad is not None
        self._due = step + self._interval

    def capture(self, step: int, evidence: Mapping[str, Any] | None = None) -> Snapshot:
        """A snapshot of this boundary, its early end included if it was captured.

        Raises:
            TypeError: some part holds what cannot be read back safely; names it.
        """
        early = self._early[1] if self._early is not None and self.ready(step) else self.parts.early()
        self._early = None
        guard = None if self.writer.run_path is None else copied(dict(self._state()), "guard")
        parts = self.parts.late(early)
        return Snapshot(
            self._attempt, step, parts, guard, self.lr_scale, copied(dict(evidence or {}), "evidence")
        )

    def _pace(self, step: int) -> None:
        """Double the interval while taking and writing costs more than its share of the time.

        Only by doubling, so that two runs of the same training nearly always keep the same steps.
        """
        now = time.perf_counter()
        if self._taken is not None and step > self._taken[0]:
            pace = (now - self._taken[1]) / (step - self._taken[0])
            while self._cost > SHARE * pace * self._interval:
                self._interval *= 2
        self._taken, self._cost = (step, now), 0.0

    def _plan(self, step: int) -> None:
        """Find the next step at which something is due."""
        if self.next == NEVER:
            return
        waiting = self._candidate
        self.next = max(self._due, step + 1) if waiting is None else waiting.step + self._quiet_time

    def _give_up(self, why: str) -> None:
        self._complain(f"no snapshots are taken: {why}")
        self.next, self._candidate = NEVER, None

    def observed(self, step: int, firing: frozenset[str]) -> None:
        """Hear which alerts are firing, where they have changed: a rule that acts spoils the candidate."""
        self._spoiled = bool(self._acting & firing)
        if self._spoiled:
            self._due = step + 1 if self._candidate is not None else self._due
            self._candidate = None
            self._plan(step)

    def words(self, stopping: int) -> Words:
        """What the other ranks have to know, so that all take and certify the same snapshots."""
        waiting = -1 if self._candidate is None else self._candidate.step
        due = NEVER if self.next == NEVER else self._due
        return Words(stopping, due, self._interval, waiting)

    def heard(self, step: int, words: Words) -> None:
        """Take snapshots as the slowest rank does, and keep none that another rank lacks."""
        self._due, self._interval = int(words.due), int(words.interval)
        if self._candidate is not None and self._candidate.step != words.candidate:
            self._candidate = None
        self._plan(step)

    def newest(self, step: int) -> int | None:
        """The step of the newest certified snapshot, which every rank can read; None if there is none."""
        own = self._newest(step)
        found = self._ranks.same(own)
        if own is not None and found is None:
            for certified in self._certified:
                self._record("lost", step, {"step": certified})
            self._certified.clear()
        return found

    def _newest(self, step: int) -> int | None:
        run_path = self.writer.run_path
        if self._held is None and run_path is not None:
            self.writer.finish()
            own = (
                shelf
                for shelf in shelved(run_path)
                if shelf.grade == "certified" and shelf.attempt == self._attempt and shelf.step <= step
            )
            self._held = next((snapshot for shelf in own if (snapshot := self._read(shelf, step))), None)
        return None if self._held is None else self._held.step

    def _read(self, shelf: Shelved, step: int) -> Snapshot | None:
        snapshot = self.read(shelf)
        if snapshot is None:
            self._record("lost", step, {"step": shelf.step})
        return snapshot

    def read(self, shelf: Shelved) -> Snapshot | None:
        """A snapshot from disk, if it is whole and of this training; else that is said."""
        try:
            snapshot = read(shelf)
            self.parts.check(snapshot.parts)
        except SnapshotError as fault:
            self._complain(f"snapshot {shelf.path.name} is refused: {fault}; the next older one is tried")
            return None
        return snapshot

    def roll_back(self, step: int) -> float:
        """Go back to the newest certified snapshot; return what the guard had made of its learning rate.

        Raises:
            SnapshotError: there is none, or it does not fit; nothing was touched.
        """
        if self._newest(step) is None or self._held is None:
            raise SnapshotError("there is no certified snapshot to go back to")
        self.parts.restore(self._held.parts)
        self._candidate, self._due = None, step + 1
        self._plan(step)
        return self._held.lr_scale

    def go_on(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot that was read, as the run that left it."""
        self.parts.restore(snapshot.parts, data=True)
        self._attempt, self.lr_scale = snapshot.attempt, snapshot.lr_scale
        self._due = snapshot.step + self._interval
        self._plan(snapshot.step)

    def close(self, *, completed: bool) -> None:
        """Take no more snapshots, and wait for what is being written."""
        self.next = NEVER
        self.writer.close(completed=completed)

    def write_now(self, step: int, grade: Grade, evidence: Mapping[str, Any] | None = None) -> Path | None:
        """Write a snapshot of this boundary and wait for it; None, and a complaint, if that fails."""
        if self.writer.run_path is None:
            self._complain("a snapshot was asked for, but there is no run folder to write it to")
            return None
        try:
            snapshot = self.capture(step, evidence)
        except Exception as fault:
            self._complain(f"no snapshot can be taken: {type(fault).__name__}: {fault}")
            return None
        return self.writer.now(snapshot, grade)


def _budget() -> int:
    """Bytes that snapshots may take in memory: a quarter of what the machine has."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return 2 << 30
