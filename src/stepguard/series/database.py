"""The tables of a run file, and how SQLite files are opened: told apart from others, with errors that help.

`names` gives numbers to the names in frames; `blocks` holds frames by columns, `hists` the histograms of the
block of the same id, `events` JSON. The frames of an attempt are counted from 0: a block has those from
`first` to `last`, `full` of them with vectors, after `lost` of them were thinned to their scalars. The newest
frames lie in small blocks until there are enough for one whole block, which then takes their place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

from stepguard.errors import RunFileError

FORMAT = 3
"""Version of tables, blobs and what an attempt says of itself, kept as SQLite's `user_version`."""
_APPLICATION = 0x53474452
"""SQLite's `application_id` of a run file: "SGDR"."""
_PATIENCE = 30
"""Seconds to wait for another process that holds the file."""
_TABLES = f"""
PRAGMA auto_vacuum = INCREMENTAL;
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE attempts (number INTEGER PRIMARY KEY, info TEXT NOT NULL, layers TEXT NOT NULL, outcome TEXT);
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, full INTEGER NOT NULL, lost INTEGER NOT NULL,
    thinned INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE hists (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX blocks_of_attempt ON blocks (attempt, last);
CREATE INDEX blocks_to_thin ON blocks (thinned, id);
CREATE INDEX events_of_attempt ON events (attempt);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
"""


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a run file read-only. RunFileError if it is missing, is none, or is of another format."""
    if not path.is_file():
        raise _unfit(path, "a folder" if path.is_dir() else "no file", "name a file that a guarded run left")
    _recover(path)
    with _open(path, "ro") as connection:
        _recognise(path, connection)
    return connection


def _recover(path: Path) -> None:
    """Undo what a kill has left half done in a journal: whoever only reads could not."""
    if path.with_name(f"{path.name}-journal").exists():
        with suppress(RunFileError), _open(path, "rw") as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.close()


def open_to_write(path: Path) -> sqlite3.Connection:
    """Open a run file, or create it, for use from any one thread. RunFileError if that cannot be done."""
    with _open(path, "rwc") as connection:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            _create(connection)
        _recognise(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def settle(connection: sqlite3.Connection) -> None:
    """Close after writing: a single file is left, if nobody else has it open."""
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA incremental_vacuum").fetchall()
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


@contextmanager
def _open(path: Path, mode: str) -> Generator[sqlite3.Connection]:
    """A connection that is closed again if setting it up fails, with an error that helps."""
    connection = None
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}",
            uri=True,
            timeout=_PATIENCE,
            isolation_level=None,
            check_same_thread=False,
        )
        yield connection
    except (sqlite3.Error, RunFileError) as error:
        if connection is not None:
            connection.close()
        raise error if isinstance(error, RunFileError) else _explained(path, error) from error


def _create(connection: sqlite3.Connection) -> None:
    try:
        written_by = version("stepguard")
    except PackageNotFoundError:
        written_by = "not installed"
    connection.executescript(_TABLES)
    connection.execute("INSERT INTO meta VALUES ('stepguard', ?)", (written_by,))
    connection.execute("COMMIT")


def _recognise(path: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise _unfit(path, "an SQLite file of something else", "name a file that a guarded run left")
    if found != FORMAT:
        way_out = "pip install -U stepguard" if found > FORMAT else "read it with the version that wrote it"
        raise _unfit(path, f"format {found}, this version reads format {FORMAT}", way_out)


def _explained(path: Path, error: sqlite3.Error) -> RunFileError:
    if "not a database" in str(error):
        return _unfit(path, "a file that is not SQLite", "name a file that a guarded run left")
    return _unfit(path, f"SQLite's error {str(error)!r}", "check that its folder exists and can be written")


def _unfit(path: Path, got: str, way_out: str) -> RunFileError:
    return RunFileError(f"{path}: expected a run file of stepguard, got {got} ({way_out})")
