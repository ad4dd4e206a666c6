"""The run file: what a run leaves on disk. It can be read while it is written, and outlives a kill.

Flow: in come frames and events from the training's thread, which never waits; out come the same frames, bit
for bit, and events. What is older than a second is on disk, also when the process is killed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import warnings
import weakref
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from stepguard.errors import RunFileError, StepguardWarning
from stepguard.series import columns
from stepguard.series.background import Background, Job
from stepguard.series.blocks import Block
from stepguard.series.database import FORMAT, open_to_read, open_to_write
from stepguard.series.records import AttemptRecord, Event, Meta, Thinned
from stepguard.series.tables import LIMIT, Tables
from stepguard.signals import Frame, Layer

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

SUFFIX = ".sqlite"
"""Of run files, by which `find_run` knows them."""
MAX_PENDING = 256
"""Frames with layers that wait for the disk; more are dropped. Of frames without, sixteen times as many."""
DROPPED = "dropped"
"""Kind of the event that says how many `frames` are missing, from its step to the `last`."""
_PATIENCE = 10.0
"""Seconds to wait for the disk at the end."""
_PAGE = 256
"""Rows fetched at once."""
_BLOCKS = 8
"""Blocks fetched at once."""

Item = TypeVar("Item")


class RunWriter:
    """Writes a run file, or goes on with one, in a thread of its own.

    What goes wrong on disk costs the recording, or frames of it, and is said once by a StepguardWarning; it
    never raises. Frames handed over must not be changed afterwards.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        """Create or open the file; its folder must exist. RunFileError if that fails.

        `limit`: bytes beyond which old frames are thinned; None takes STEPGUARD_RUN_BYTES, or LIMIT.
        """
        self.path = path
        self._tables = Tables(open_to_write(path), _limit() if limit is None else limit)
        self._background = Background(self._tables.commit, self._tables.close)
        self._attempt, self._lost, self._said = 0, list[int](), set[str]()
        # A training that ends without close, by an exception for one, still has its last frames written.
        self._end = weakref.finalize(self, self._background.stop, _PATIENCE)

    def begin_attempt(self, number: int, info: Mapping[str, JSON]) -> None:
        """What follows belongs to this attempt; one that was begun before is gone on with."""
        self._attempt = number
        self._put(partial(self._tables.begin, number, json.dumps(info)))

    def layers(self, layers: Sequence[Layer]) -> None:
        """The watched layers of the attempt, before its first frame."""
        self._put(partial(self._tables.layers, self._attempt, json.dumps(layers)))

    def frame(self, frame: Frame) -> None:
        """Record a frame, unless too many wait already."""
        if self._background.pending >= (MAX_PENDING if frame.vectors else 16 * MAX_PENDING):
            self._lost.append(frame.step)
            self._say("the disk is slower than the training: frames are missing from the recording")
            return
        self._tell_lost()
        now = Frame(frame.step, dict(frame.scalars), dict(frame.vectors), frame.hist)
        self._put(partial(self._tables.frame, now))

    def event(self, kind: str, step: int, data: Mapping[str, JSON]) -> None:
        """Record something that happened at a step."""
        self._put(partial(self._tables.event, self._attempt, kind, step, json.dumps(data)))

    def together(self) -> AbstractContextManager[None]:
        """What is recorded inside comes to the disk at once or not at all, whenever the process is killed."""
        return self._background.together()

    def end_attempt(self, outcome: str) -> None:
        """Say how the attempt ended."""
        self._put(partial(self._tables.end, self._attempt, outcome))

    def flush(self) -> None:
        """Wait until everything so far is on disk, at most ten seconds."""
        self._check(self._background.flush(_PATIENCE))

    def close(self) -> None:
        """Write what waits and close the file, in ten seconds at most. A second call does nothing."""
        if self._end.alive:
            self._tell_lost()
            self._end.detach()
            self._check(self._background.stop(_PATIENCE))

    def _tell_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, []
            self.event(DROPPED, lost[0], {"frames": len(lost), "last": lost[-1]})

    def _put(self, job: Job) -> None:
        if not self._end.alive:
            raise ValueError(f"{self.path}: expected an open run file, got one that was closed")
        self._background.put(job)
        self._check()

    def _check(self, in_time: bool = True) -> None:
        fault = self._background.fault
        if fault is not None:
            self._say(f"the recording ends here, the training goes on ({fault!r})")
        elif not in_time:
            self._say(f"the disk took longer than {_PATIENCE:.0f} s; the last frames may be missing")

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(f"{self.path}: {message}", StepguardWarning, stacklevel=4)


class RunFile:
    """A run file open for reading, perhaps while it is written. A context manager.

    Every call sees what was on disk by then. RunFileError if the file is missing, is no run file, is of
    another format, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = open_to_read(path)
        with self._readable():
            (written_by,) = self._db.execute("SELECT value FROM meta WHERE key = 'stepguard'").fetchone()
        self.meta = Meta(FORMAT, written_by)
        self._names: dict[int, str] = {}

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def attempts(self) -> list[AttemptRecord]:
        """All attempts, by number."""
        with self._readable():
            rows = self._db.execute("SELECT number, info, layers, outcome FROM attempts ORDER BY number")
            return [
                AttemptRecord(
                    number, json.loads(info), tuple(Layer(*layer) for layer in json.loads(layers)), end
                )
                for number, info, layers, end in rows
            ]

    def frames(
        self, attempt: int, signals: Collection[str] | None = None, *, hist: bool = True
    ) -> Iterator[Frame]:
        """The frames of an attempt in the order they were recorded; none if there is no such attempt.

        With all signals or some of them, with histograms or without.
        """
        for block in self.blocks(attempt, signals, hist=hist):
            yield from block.frames()

    def blocks(
        self, attempt: int, signals: Collection[str] | None = None, *, hist: bool = False
    ) -> Iterator[Block]:
        """The same frames by columns, some at a time: the fast way to read few signals of many steps."""
        counts = "hists.data" if hist else "NULL"
        query = (
            f"SELECT first, last, blocks.data, {counts} FROM blocks LEFT JOIN hists USING (id)"
            f" WHERE attempt = ? AND last >= ? ORDER BY last LIMIT {_BLOCKS}"
        )
        newest = -1
        while True:
            with self._readable():
                page = self._db.execute(query, (attempt, newest + 1)).fetchall()
                found = [self._block(*row, signals=signals) for row in page]
            for (first, last, _, _), block in zip(page, found, strict=True):
                # Small blocks may have become a whole one meanwhile, of which the first frames were read.
                yield block.part(slice(newest + 1 - first, None)) if first <= newest else block
                newest = last
            if not page:
                return

    def reached(self, attempt: int) -> int | None:
        """The step of the last frame of an attempt; None if it has none."""
        query = "SELECT last_step FROM blocks WHERE attempt = ? ORDER BY last DESC LIMIT 1"
        with self._readable():
            found = self._db.execute(query, (attempt,)).fetchone()
        return None if found is None else int(found[0])

    def signals(self) -> list[str]:
        """The names of all signals that some frame has."""
        with self._readable():
            return [name for (name,) in self._db.execute("SELECT name FROM names ORDER BY id")]

    def thinned(self, attempt: int) -> Thinned | None:
        """What the file's limit cost the attempt; None if nothing."""
        query = "SELECT min(first_step), max(last_step), sum(lost) FROM blocks WHERE attempt = ? AND lost > 0"
        with self._readable():
            first, last, lost = self._db.execute(query, (attempt,)).fetchone()
        return None if lost is None else Thinned(first, last, lost)

    def events(self, attempt: int, kind: str | None = None) -> Iterator[Event]:
        """The events of an attempt in the order they were recorded, all or those of one kind."""
        found = self._all("events", "kind, step, data", attempt, _event)
        return (event for event in found if kind is None or event.kind == kind)

    def _all(self, table: str, columns: str, attempt: int, make: Callable[..., Item]) -> Iterator[Item]:
        """Rows page by page, so that a slow reader does not keep the writer from emptying its log."""
        query = f"SELECT id, {columns} FROM {table} WHERE attempt = ? AND id > ? ORDER BY id LIMIT {_PAGE}"
        newest = -1
        while True:
            with self._readable():
                page = self._db.execute(query, (attempt, newest)).fetchall()
                found = [make(*row[1:]) for row in page]
            yield from found
            if len(page) < _PAGE:
                return
            newest = page[-1][0]

    def _block(
        self, first: int, last: int, data: bytes, hist: bytes | None, signals: Collection[str] | None
    ) -> Block:
        try:
            block = columns.decode(data, self._names, signals, hist)
        except KeyError:  # a signal that was first measured after the names were read
            self._names = dict(self._db.execute("SELECT id, name FROM names"))
            block = columns.decode(data, self._names, signals, hist)
        if len(block) != last - first + 1:
            raise ValueError(f"expected {last - first + 1} frames in a block, got {len(block)}")
        return block

    @contextmanager
    def _readable(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, LookupError, TypeError, struct.error, zlib.error) as error:
            raise RunFileError(
                f"{self.path}: expected a whole run file, got a damaged one ({error!r})"
            ) from error


def _event(kind: str, step: int, data: str) -> Event:
    return Event(kind, step, json.loads(data))


def _limit() -> int:
    told = os.environ.get("STEPGUARD_RUN_BYTES", "")
    if not told.isdecimal():
        if told:
            said = f"STEPGUARD_RUN_BYTES: expected a number of bytes, got {told!r}; {LIMIT} is taken"
            warnings.warn(said, StepguardWarning, stacklevel=4)
        return LIMIT
    return int(told)


def find_run(path: str | Path) -> Path:
    """The run file that a path means: itself, or the newest in a folder. RunFileError if there is none."""
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise RunFileError(f"{path}: expected a run file or a folder of them, got no such file")
        return path
    return max(find_runs(path), key=_last_written)


def find_runs(path: str | Path) -> list[Path]:
    """All run files that a path means, by name: itself, or those in a folder. RunFileError if none."""
    path = Path(path)
    runs = sorted(file for file in path.iterdir() if file.suffix == SUFFIX) if path.is_dir() else [path]
    if not runs:
        raise RunFileError(f"{path}: expected a run file (*{SUFFIX}) in this folder, got none")
    return runs


def _last_written(run: Path) -> float:
    """While a run is written, its newest rows are in SQLite's log beside it."""
    log = run.with_name(f"{run.name}-wal")
    return max(file.stat().st_mtime for file in (run, log) if file.exists())
