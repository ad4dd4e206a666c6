"""The snapshots of a run on disk: their names, which may be gone back to, how many are kept. Without torch.

They lie beside the run file in a folder of its name: `ATTEMPT-STEP-GRADE-CHECKSUM.pt`, put there by one
rename, so what has such a name was once whole; what was altered since does not fit its checksum any more.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

from stepguard.errors import RunFileError
from stepguard.series.runfile import RunFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Grade = Literal["certified", "quiet", "evidence"]
"""`certified`: no alert fired for longer than the rules take to find anything. `quiet`: none was firing when
it was asked for; a resumed run may go on from it, a rollback may not. `evidence`: for people to look at."""
KEPT = 2
"""Snapshots of each grade that are kept."""
_NAME = re.compile(rf"(\d{{4,}})-(\d{{12}})-({'|'.join(get_args(Grade))})-([0-9a-f]{{32}})\.pt")
_CHUNK = 1 << 20


_OURS: set[Path] = set()
"""Folders that this process has claimed: the system's locks do not tell its guards apart."""


class Shelved(NamedTuple):
    """A snapshot on disk."""

    attempt: int
    step: int
    """The optimizer steps that were taken before it."""
    grade: str
    checksum: str
    path: Path


def folder_of(run_path: Path) -> Path:
    """Where the snapshots of a run lie."""
    return run_path.with_suffix(".snapshots")


def name_of(attempt: int, step: int, grade: Grade, checksum: str) -> str:
    """The name of a snapshot's file."""
    return f"{attempt:04d}-{step:012d}-{grade}-{checksum}.pt"


def shelved(run_path: Path) -> list[Shelved]:
    """The snapshots of a run, newest first; none if there is no folder."""
    with suppress(OSError):
        return sorted(_named(folder_of(run_path)), reverse=True)
    return []


def _named(folder: Path) -> Iterator[Shelved]:
    for path in folder.iterdir():
        found = _NAME.fullmatch(path.name)
        if found is not None:
            yield Shelved(int(found[1]), int(found[2]), found[3], found[4], path)


def resumable(run_path: Path, attempt: int) -> list[Shelved]:
    """The snapshots that an attempt may go on from, newest first, whether or not they are whole."""
    return [found for found in shelved(run_path) if found.attempt == attempt and found.grade != "evidence"]


def newest_certified(run_path: Path) -> Path | None:
    """The newest whole snapshot that the last attempt of a run would go on from; None if there is none."""
    try:
        with RunFile(run_path) as run:
            last = run.attempts()[-1].number
    except (RunFileError, IndexError):
        return None
    return next((found.path for found in resumable(run_path, last) if whole(found)), None)


def whole(found: Shelved) -> bool:
    """Whether the file is there and fits its checksum."""
    digest = new_checksum()
    try:
        with found.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == found.checksum


def new_checksum() -> hashlib.blake2b:
    """The checksum of snapshots, of nothing yet."""
    return hashlib.blake2b(digest_size=16)


def prune(run_path: Path, keep: int = KEPT) -> None:
    """Delete all but the newest `keep` of each grade, and drafts that a kill has left."""
    kept: dict[str, int] = {}
    for found in shelved(run_path):
        kept[found.grade] = kept.get(found.grade, 0) + 1
        if kept[found.grade] > keep:
            with suppress(OSError):
                found.path.unlink()
    for draft in folder_of(run_path).glob("*.draft"):
        with suppress(OSError):
            draft.unlink()


class Claim:
    """Says that this process is the one that writes a run, until it ends, by a kill or otherwise.

    The system lets go of the lock by itself. Two guards of one process never share a run file.
    """

    def __init__(self, run_path: Path) -> None:
        """Claim the run. OSError if another process has it, or the folder cannot be written."""
        folder = folder_of(run_path).absolute()
        if folder in _OURS:
            raise OSError(f"{run_path} is written by another guard of this process")
        folder.mkdir(exist_ok=True)
        self._file: IO[bytes] = (folder / "claim").open("ab")
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise
        self._folder = folder
        _OURS.add(folder)

    def close(self) -> None:
        """Let go of the run; a folder without a snapshot goes away."""
        self._file.close()
        _OURS.discard(self._folder)
        with suppress(OSError):
            (self._folder / "claim").unlink()
            self._folder.rmdir()


def is_written(run_path: Path) -> bool | None:
    """Whether a process has claimed the run; None where none left word of it, or no lock can be asked for."""
    try:
        handle = os.open(folder_of(run_path) / "claim", os.O_RDWR)
    except OSError:
        return None
    try:
        os.lockf(handle, os.F_TEST, 0)
    except PermissionError:
        return True
    except (AttributeError, OSError):
        return None
    finally:
        os.close(handle)
    return False


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a power cut, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
