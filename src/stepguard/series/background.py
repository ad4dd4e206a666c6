"""Jobs done by a thread of its own, in order and in batches, so that a training never waits for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

Job = Callable[[], None]

_PAUSE = 0.25
"""Seconds in which jobs gather into a batch."""
_MANY = 128
"""Jobs that are not left to gather."""


class Background:
    """Runs `do` on the jobs that have gathered; after the first failure nothing more is done."""

    def __init__(self, do: Callable[[Sequence[Job]], None], finish: Job) -> None:
        """`finish` is called at the end, by the thread as well."""
        self._do, self._finish = do, finish
        self._queue: SimpleQueue[Job | threading.Event | None] = SimpleQueue()
        self._hurry = threading.Event()
        self._lock = threading.RLock()
        self._gathered: list[Job] | None = None
        """What this thread puts together."""
        self.fault: Exception | None = None
        """What went wrong, if anything did."""
        self._thread = threading.Thread(target=self._work, name="stepguard run file", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """About how many jobs wait."""
        return self._queue.qsize()

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """Jobs put inside are one job: they come into the same batch."""
        with self._lock:
            self._gathered = jobs = list[Job]()
            try:
                yield
            finally:
                self._gathered = None
                self.put(lambda: _do_all(jobs))

    def put(self, job: Job) -> None:
        """Have a job done soon, at once where many wait; never waits for one to be done."""
        with self._lock:
            if self._gathered is not None:
                self._gathered.append(job)
                return
        self._queue.put(job)
        if self._queue.qsize() > _MANY:
            self._hurry.set()

    def flush(self, timeout: float) -> bool:
        """Wait until all jobs so far are done; False if that took too long."""
        done = threading.Event()
        self._queue.put(done)
        self._hurry.set()
        return done.wait(timeout)

    def stop(self, timeout: float) -> bool:
        """Do what waits and end the thread; False if that took too long."""
        self._queue.put(None)
        self._hurry.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        going_on = True
        while going_on:
            batch = [self._queue.get()]
            self._hurry.wait(_PAUSE)
            self._hurry.clear()
            batch += [self._queue.get() for _ in range(self._queue.qsize())]
            self._do_unless_failed([item for item in batch if callable(item)])
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            going_on = None not in batch
        self._finish()

    def _do_unless_failed(self, jobs: Sequence[Job]) -> None:
        if self.fault is not None:
            return
        try:
            self._do(jobs)
        except Exception as fault:
            self.fault = fault


def _do_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job()
