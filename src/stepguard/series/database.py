"""The tables of a run file, and how SQLite files are opened: told apart from others, with errors that help.

`names` gives numbers to the names in frames; `frames` holds a blob each, `events` JSON. Rows are in the order
in which they happened and are never changed, but for the outcome of an attempt.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

from stepguard.errors import RunFileError

FORMAT = 1
"""Version of tables and blobs, kept as SQLite's `user_version`."""
_APPLICATION = 0x53474452
"""SQLite's `application_id` of a run file: "SGDR"."""
_PATIENCE = 30
"""Seconds to wait for another process that holds the file."""
_TABLES = f"""
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE attempts (number INTEGER PRIMARY KEY, info TEXT NOT NULL, layers TEXT NOT NULL, outcome TEXT);
CREATE TABLE frames (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, step INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX frames_of_attempt ON frames (attempt);
CREATE INDEX events_of_attempt ON events (attempt);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
"""


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a run file read-only. RunFileError if it is missing, is none, or is of a newer version."""
    if not path.is_file():
        raise _unfit(path, "a folder" if path.is_dir() else "no file", "name a file that a guarded run left")
    with _open(path, "ro") as connection:
        _recognise(path, connection)
    return connection


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
    if found > FORMAT:
        raise _unfit(path, f"format {found}, expected at most {FORMAT}", "upgrade: pip install -U stepguard")


def _explained(path: Path, error: sqlite3.Error) -> RunFileError:
    if "not a database" in str(error):
        return _unfit(path, "a file that is not SQLite", "name a file that a guarded run left")
    return _unfit(path, f"SQLite's error {str(error)!r}", "check that its folder exists and can be written")


def _unfit(path: Path, got: str, way_out: str) -> RunFileError:
    return RunFileError(f"{path}: expected a run file of stepguard, got {got} ({way_out})")
