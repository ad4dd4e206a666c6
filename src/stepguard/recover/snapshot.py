"""A snapshot: all that a training is at one step, and how it gets to disk and back.

Flow: in comes what `parts` has captured; out goes one file, written aside, synced and renamed, whose name
carries its checksum. Only tensors, numbers and text are read back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch

from stepguard.errors import StepguardError
from stepguard.recover.copies import unpacked
from stepguard.recover.shelf import Grade, Shelved, folder_of, name_of, new_checksum, sync_folder, whole

FORMAT = 1


class SnapshotError(StepguardError):
    """A snapshot cannot be used: says which, and why."""


@dataclass(frozen=True)
class Snapshot:
    """The training before its step `step`, that is after as many optimizer steps."""

    attempt: int
    step: int
    parts: Mapping[str, Any]
    """Model, optimizer and the rest, as `Parts` captures them."""
    guard: Mapping[str, Any] | None = None
    """Windows, alerts and ladders; None where the snapshot stays in memory."""
    lr_scale: float = 1.0
    """What the guard had made of the learning rate by then, as a factor."""
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Why it was asked for."""


def write(snapshot: Snapshot, run_path: Path, grade: Grade) -> Path:
    """Write a snapshot beside a run file: whole or not at all. OSError if the disk does not take it."""
    folder = folder_of(run_path)
    folder.mkdir(exist_ok=True)
    draft = folder / f"{snapshot.step}-{os.getpid()}.draft"
    try:
        with draft.open("wb") as file:
            checksum = _save(snapshot, file)
        path = folder / name_of(snapshot.attempt, snapshot.step, grade, checksum)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(folder)
    return path


def _save(snapshot: Snapshot, file: IO[bytes]) -> str:
    """Write and sync; return the checksum."""
    summed = _Summed(file)
    try:
        torch.save({"format": FORMAT, **vars(snapshot)}, cast(IO[bytes], summed))
        file.flush()
        os.fsync(file.fileno())
    except RuntimeError as fault:  # torch hides what the disk said behind an error of its own
        raise summed.fault or fault from fault
    return summed.digest.hexdigest()


class _Summed:
    """A file that is written through, and its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = new_checksum()
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as fault:
            self.fault = fault
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def read(found: Shelved) -> Snapshot:
    """Read a snapshot. SnapshotError if it is torn, altered, of a newer version, or no snapshot."""
    if not whole(found):
        raise SnapshotError("it is torn or was altered: its checksum does not fit")
    try:
        state = torch.load(found.path, map_location="cpu", weights_only=True)
        version = state.pop("format")
    except Exception as fault:
        raise SnapshotError(f"it cannot be read ({type(fault).__name__}: {fault})") from fault
    if version > FORMAT:
        raise SnapshotError(
            f"expected format {FORMAT} at most, got {version}"
            " (it was written by a newer stepguard: pip install -U stepguard)"
        )
    return Snapshot(**{**state, "guard": unpacked(state["guard"])})
