"""The run file, as the supervisor sees it: how an attempt ended that was killed, and where a run goes on."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from stepguard.errors import RunFileError
from stepguard.recover.attempt import Attempt
from stepguard.recover.shelf import newest_certified
from stepguard.series.database import open_to_write, settle
from stepguard.series.runfile import SUFFIX, AttemptRecord, RunFile, find_run


def record_outcome(run_path: Path, number: int, outcome: str) -> None:
    """Write down how an attempt ended, if nobody has. The run goes on where the file cannot be written."""
    with suppress(RunFileError, sqlite3.Error):
        connection = open_to_write(run_path)
        try:
            connection.execute(
                "UPDATE attempts SET outcome = ? WHERE number = ? AND outcome IS NULL", (outcome, number)
            )
        finally:
            settle(connection)


def resumed(path: Path) -> Attempt:
    """The attempt that goes on with a run: a run file, or the newest in a folder.

    A folder in which there is no run yet, or whose newest run was completed, gives a first attempt.
    RunFileError if a file cannot be read.
    """
    if path.suffix != SUFFIX and not (path.is_dir() and list(path.glob(f"*{SUFFIX}"))):
        if path.exists() and not path.is_dir():
            raise RunFileError(f"{path}: expected a run file (*{SUFFIX}) or a folder of them")
        return Attempt()
    found = find_run(path).absolute()
    with RunFile(found) as run:
        attempts = run.attempts()
    if not attempts or attempts[-1].outcome == "completed":
        return Attempt()
    return _after(attempts[-1], found)


def _after(record: AttemptRecord, run_path: Path) -> Attempt:
    """The same attempt, where it left a snapshot; else the next."""
    info = record.info
    resume = run_path if newest_certified(run_path) is not None else None
    return Attempt(
        number=record.number + (resume is None),
        seed=int(info.get("seed", 0)),
        lr_scale=float(info.get("lr_scale", 1.0)),
        init=info.get("init"),
        clip=info.get("clip"),
        pace=info.get("pace"),
        run_path=run_path,
        resume=resume,
    )
