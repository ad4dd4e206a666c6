"""The run file: one SQLite file a run, which can be read while it is written and survives a kill.

Tables: `meta` (who wrote it), `names` (of signals, by the numbers that frames use), `attempts`, `frames`
(one blob each, see `blob`) and `events` (JSON). Rows are in the order in which they happened, and are never
changed but for the outcome of an attempt.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from stepguard.errors import RunFileError
from stepguard.series import blob
from stepguard.signals import Frame, Layer

JSON: TypeAlias = "None | bool | int | float | str | Sequence[JSON] | Mapping[str, JSON]"

SUFFIX = ".sqlite"
FORMAT = 1
"""Version of the tables and blobs, kept as SQLite's user_version."""
APPLICATION = 0x53474452
"""SQLite's application_id of a run file: "SGDR"."""
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS attempts (number INTEGER PRIMARY KEY, info TEXT NOT NULL, layers TEXT, outcome TEXT);
CREATE TABLE IF NOT EXISTS frames (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, step INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS frames_of_attempt ON frames (attempt);
CREATE INDEX IF NOT EXISTS events_of_attempt ON events (attempt);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
"""
_PAGE = 256
"""Rows fetched at once, so that a slow reader does not keep the writer from emptying its log."""


class Meta(NamedTuple):
    """Who wrote a run file."""

    format: int
    """Version of the format."""
    stepguard: str
    """Version of the package that created it."""


class AttemptRecord(NamedTuple):
    """One try at the training."""

    number: int
    info: Mapping[str, Any]
    """What the writer said about it: seed, rules' texts, ..."""
    layers: tuple[Layer, ...]
    """The watched layers in depth order; empty before the first frame."""
    outcome: str | None
    """None while it goes on, or where it was killed."""


class Event(NamedTuple):
    """Something that happened at a step: an alert's change, a decision, a note."""

    kind: str
    step: int
    data: Mapping[str, Any]


class RunFile:
    """A run file, open for reading, perhaps while another process writes it. A context manager.

    Each call sees what was committed by then. RunFileError where the file is missing, is no run file, was
    written by a newer version, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RunFileError(f"{path}: expected a run file, got {'a folder' if path.is_dir() else 'no file'}"
                               " (a run leaves one in its folder, `runs` unless told otherwise)")  # fmt: skip
        self.path = path
        self._db = connect(path, mode="ro")
        self.meta = Meta(FORMAT, "")

    def __enter__(self) -> RunFile:
        return self
