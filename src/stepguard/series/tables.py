"""The writing side of a run file's tables: blocks of frames that grow, merge, and are thinned at the cap.

Flow: in come jobs of the background thread, in order; out go rows, one transaction for all that gathered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from stepguard.series import columns
from stepguard.series.database import settle
from stepguard.signals import Frame

LIMIT = 2 * 10**9
"""Bytes of a run file; beyond, every second full frame of the oldest steps gives up all but its scalars.

The environment variable STEPGUARD_RUN_BYTES sets another limit."""
BLOCK = 128
"""Frames of a whole block."""
_CELLS = 1 << 15
"""Frames times layers of a block at most, so that thousands of layers do not fill the memory."""
_AT_ONCE = 8
"""Blocks thinned in one transaction."""


class Tables:
    """What the background thread alone may use."""

    def __init__(self, connection: sqlite3.Connection, limit: int) -> None:
        self._db, self._limit = connection, limit
        self._names: dict[str, int] = {n: i for i, n in connection.execute("SELECT id, name FROM names")}
        self._attempt = 0
        self._first = 0
        """Number of the first frame that is not in a whole block."""
        self._open: list[Frame] = []
        self._saved = 0
        """How many of the open frames lie in small blocks."""

    def commit(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Do jobs in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        for job in jobs:
            job()
        self._save()
        self._thin()
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Merge what lies in small blocks, and close the file."""
        with suppress(sqlite3.Error):
            self._db.execute("BEGIN IMMEDIATE")
            self._merge(len(self._open))
            self._db.execute("COMMIT")
        settle(self._db)

    def begin(self, number: int, info: str) -> None:
        """Begin an attempt, or go on with it."""
        self._save()
        self._merge(len(self._open))
        self._db.execute(
            "INSERT INTO attempts VALUES (?, ?, '[]', NULL)"
            " ON CONFLICT DO UPDATE SET info = excluded.info, outcome = NULL",
            (number, info),
        )
        self._attempt, self._first = number, self._count(number)

    def layers(self, attempt: int, layers: str) -> None:
        """The layers of an attempt."""
        self._db.execute("UPDATE attempts SET layers = ? WHERE number = ?", (layers, attempt))

    def frame(self, frame: Frame) -> None:
        """One more frame of the attempt."""
        self._open.append(frame)

    def event(self, attempt: int, kind: str, step: int, data: str) -> None:
        """Something that happened."""
        self._db.execute(
            "INSERT INTO events (attempt, kind, step, data) VALUES (?, ?, ?, ?)", (attempt, kind, step, data)
        )

    def end(self, attempt: int, outcome: str) -> None:
        """How an attempt ended."""
        self._db.execute("UPDATE attempts SET outcome = ? WHERE number = ?", (outcome, attempt))

    def set_aside(self, attempt: int, step: int) -> None:
        """Move frames and events from `step` on to the attempt of the negative number."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "UPDATE events SET attempt = ? WHERE attempt = ? AND step >= ?", (-attempt, attempt, step)
        )
        rows = self._db.execute(
            "SELECT first, blocks.data, hists.data FROM blocks LEFT JOIN hists USING (id)"
            " WHERE attempt = ? AND last_step >= ? ORDER BY last",
            (attempt, step),
        ).fetchall()
        self._remove(attempt, "last_step >= ?", step)
        aside = self._count(-attempt)
        for first, data, hist in rows:
            frames = self._read(data, hist)
            kept, moved = ([f for f in frames if (f.step >= step) == later] for later in (False, True))
            if kept:
                self._insert(attempt, first, kept)
            self._insert(-attempt, aside, moved)
            aside += len(moved)
        self._db.execute("COMMIT")

    def _count(self, attempt: int) -> int:
        """The number of the next frame of an attempt."""
        query = "SELECT coalesce(max(last) + 1, 0) FROM blocks WHERE attempt = ?"
        (count,) = self._db.execute(query, (attempt,)).fetchone()
        return count

    def _save(self) -> None:
        """Bring the open frames to disk: whole blocks first, what is left as one small block."""
        while len(self._open) >= (size := self._size()):
            self._merge(size)
        if self._saved < len(self._open):
            self._insert(self._attempt, self._first + self._saved, self._open[self._saved :])
            self._saved = len(self._open)

    def _size(self) -> int:
        layers = max((len(next(iter(f.vectors.values())).values) for f in self._open if f.vectors), default=1)
        return max(8, min(BLOCK, _CELLS // max(layers, 1)))

    def _merge(self, count: int) -> None:
        """The first open frames become one block, in place of the small ones."""
        if not count or (self._saved == count and self._blocks_open() == 1):
            self._first, self._open, self._saved = self._first + count, self._open[count:], 0
            return
        self._remove(self._attempt, "last >= ?", self._first)
        self._insert(self._attempt, self._first, self._open[:count])
        self._first, self._open, self._saved = self._first + count, self._open[count:], 0

    def _blocks_open(self) -> int:
        query = "SELECT count(*) FROM blocks WHERE attempt = ? AND last >= ?"
        (found,) = self._db.execute(query, (self._attempt, self._first)).fetchone()
        return found

    def _insert(self, attempt: int, first: int, frames: Sequence[Frame]) -> None:
        data, hist = columns.encode(frames, self._number)
        steps = [frame.step for frame in frames]
        last, full = first + len(frames) - 1, len(_full(frames))
        made = self._db.execute(
            "INSERT INTO blocks (attempt, first, last, first_step, last_step, full, lost, thinned, data)"
            " VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?)",
            (attempt, first, last, min(steps), max(steps), full, data),
        )
        self._hist(made.lastrowid, hist)

    def _remove(self, attempt: int, condition: str, bound: int) -> None:
        where = f"attempt = ? AND {condition}"
        chosen = f"SELECT id FROM blocks WHERE {where}"
        self._db.execute(f"DELETE FROM hists WHERE id IN ({chosen})", (attempt, bound))
        self._db.execute(f"DELETE FROM blocks WHERE {where}", (attempt, bound))

    def _hist(self, block: int | None, hist: bytes | None) -> None:
        self._db.execute("DELETE FROM hists WHERE id = ?", (block,))
        if hist is not None:
            self._db.execute("INSERT INTO hists VALUES (?, ?)", (block, hist))

    def _thin(self) -> None:
        """Where the file is too large, drop every second full frame of the oldest blocks.

        A few blocks at each call, those first that were thinned least; scalars and events stay.
        """
        for _ in range(_AT_ONCE):
            if self._used() <= self._limit:
                return
            chosen = self._db.execute(
                "SELECT blocks.id, blocks.data, hists.data FROM blocks LEFT JOIN hists USING (id)"
                " WHERE full > 1 AND id < (SELECT max(id) FROM blocks) ORDER BY thinned, id LIMIT 1"
            ).fetchone()
            if chosen is None:
                return
            self._thin_block(*chosen)

    def _used(self) -> int:
        counts = [
            self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count")
        ]
        return (counts[0] - counts[1]) * self._db.execute("PRAGMA page_size").fetchone()[0]

    def _thin_block(self, block: int, data: bytes, hist: bytes | None) -> None:
        frames = self._read(data, hist)
        dropped = _full(frames)[1::2]
        for place in dropped:
            frames[place] = Frame(frames[place].step, frames[place].scalars)
        thin, thin_hist = columns.encode(frames, self._number)
        self._db.execute(
            "UPDATE blocks SET data = ?, full = ?, lost = lost + ?, thinned = thinned + 1 WHERE id = ?",
            (thin, len(_full(frames)), len(dropped), block),
        )
        self._hist(block, thin_hist)

    def _read(self, data: bytes, hist: bytes | None) -> list[Frame]:
        called = {number: name for name, number in self._names.items()}
        return list(columns.decode(data, called, hist=hist).frames())

    def _number(self, name: str) -> int:
        if name not in self._names:
            self._db.execute("INSERT INTO names (id, name) VALUES (?, ?)", (len(self._names), name))
            self._names[name] = len(self._names)
        return self._names[name]


def _full(frames: Sequence[Frame]) -> list[int]:
    """The places of the frames that carry most signals; those of unsampled steps have one or two of many."""
    most = max((len(frame.vectors) for frame in frames), default=0)
    return [place for place, frame in enumerate(frames) if 2 * len(frame.vectors) > most]
