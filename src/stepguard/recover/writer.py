"""Writes the snapshots of one run: in the background, or at once where somebody waits for it.

What goes wrong on disk is said, and costs that one snapshot: the training goes on, older ones are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stepguard.recover.shelf import Claim, Grade, prune
from stepguard.recover.snapshot import Snapshot, write

_PATIENCE = 60.0
"""Seconds to wait for a write at the end."""

Record = Callable[[str, int, Mapping[str, Any]], None]
Complain = Callable[[str], None]


class SnapshotWriter:
    """Writes beside a run file, which it claims for this process.

    Args:
        record: writes an event to the run file: kind, step, fields.
        complain: told of what cannot be written, and why.
    """

    def __init__(self, record: Record, complain: Complain) -> None:
        self._record, self._complain = record, complain
        self.run_path: Path | None = None
        """Beside which snapshots are written; None writes nothing."""
        self._claim: Claim | None = None
        self._fault: OSError | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._writing: tuple[Snapshot, Future[float]] | None = None

    def move(self, run_path: Path | None) -> None:
        """Write beside this run file from now on."""
        if run_path is None:
            self._let_go()
        elif not self.try_move(run_path):
            self._complain(f"no snapshots are written beside {run_path}: {self._fault}")

    def try_move(self, run_path: Path) -> bool:
        """Write beside this run file from now on; False, and nothing changes, if another process does."""
        try:
            claim = None if self._claim is not None and run_path == self.run_path else Claim(run_path)
        except OSError as fault:
            self._fault = fault
            return False
        if claim is not None:
            self._let_go()
            self.run_path, self._claim = run_path, claim
        return True

    def _let_go(self) -> None:
        if self._claim is not None:
            self._claim.close()
        self.run_path = self._claim = None

    def now(self, snapshot: Snapshot, grade: Grade) -> Path | None:
        """Write a snapshot and wait for it; None, and a complaint, if the disk does not take it."""
        self.finish()
        assert self.run_path is not None
        try:
            path = write(snapshot, self.run_path, grade)
        except (OSError, RuntimeError) as fault:
            self._say_unwritten(snapshot, fault)
            return None
        prune(self.run_path)
        self._record("snapshot", snapshot.step, {"file": path.name, "grade": grade})
        return path

    def start(self, snapshot: Snapshot) -> bool:
        """Have a certified snapshot written in the background; False if the disk is still at the last one."""
        if self.run_path is None:
            return False
        if self._writing is not None and not self._writing[1].done():
            return False
        self._pool = self._pool or ThreadPoolExecutor(1, "stepguard snapshot")
        self._writing = snapshot, self._pool.submit(_write_and_prune, snapshot, self.run_path)
        return True

    def finish(self, *, wait: bool = True) -> float:
        """Hear of the write in the background, with `wait` at its end; return the seconds of work it took."""
        if self._writing is None or not (wait or self._writing[1].done()):
            return 0.0
        (snapshot, future), self._writing = self._writing, None
        try:
            return future.result(_PATIENCE)
        except Exception as fault:
            self._say_unwritten(snapshot, fault)
            return 0.0

    def _say_unwritten(self, snapshot: Snapshot, fault: Exception) -> None:
        self._complain(
            f"the snapshot of step {snapshot.step} could not be written ({type(fault).__name__}: {fault});"
            " the training goes on, older snapshots are kept"
        )

    def close(self, *, completed: bool) -> None:
        """Wait for what is being written; of a completed run one snapshot of each grade stays."""
        self.finish()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        if self.run_path is not None and completed:
            prune(self.run_path, keep=1)
        self._let_go()


def _write_and_prune(snapshot: Snapshot, run_path: Path) -> float:
    """Write a certified snapshot; return the seconds of this thread's work."""
    began = time.thread_time()
    write(snapshot, run_path, "certified")
    prune(run_path)
    return time.thread_time() - began
