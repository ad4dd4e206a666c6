"""Which run a training goes on with: the newest of its folder that was begun and never ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from stepguard.errors import RunFileError
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Standing
from stepguard.series.runfile import AttemptRecord, RunFile, find_runs

_UNFINISHED = ("error", "stopped")
"""How the outcome of an attempt begins that was broken off; one that was killed has none."""


def unfinished(folder: Path, guard: int) -> Iterator[tuple[Path, AttemptRecord]]:
    """The runs of a folder that were broken off, newest first, with the attempt that each was in.

    `guard` is the place of the guard in its attempt: the others have run files of their own.
    """
    with suppress(RunFileError, OSError):
        for path in sorted(find_runs(folder), key=lambda run: run.stat().st_mtime, reverse=True):
            record = broken_off(path)
            if record is not None and record.info.get("guard", 0) == guard:
                yield path, record


def broken_off(run_path: Path) -> AttemptRecord | None:
    """The attempt in which a run was broken off; None if it ended, has no frames or cannot be read."""
    with suppress(RunFileError, OSError), RunFile(run_path) as run:
        attempts = run.attempts()
        if not attempts or run.reached(attempts[-1].number) is None:
            return None
        outcome = attempts[-1].outcome
        if outcome is None or outcome.startswith(_UNFINISHED):
            return attempts[-1]
    return None


def reached(run_path: Path, attempt: int) -> int | None:
    """The last step that a run has recorded of an attempt, if it can be read."""
    with suppress(RunFileError, OSError), RunFile(run_path) as run:
        return run.reached(attempt)
    return None


def take_over(attempt: Attempt, record: AttemptRecord, guard: int) -> None:
    """Make an attempt the one that a run was broken off in, as far as one of its guards knows."""
    info = record.info
    attempt.number, attempt.seed, attempt.lr_scale = record.number, info["seed"], info["lr_scale"]
    attempt.init, attempt.clip, attempt.pace = info["init"], info["clip"], info.get("pace")
    restarts: Mapping[str, Sequence[int]] = info["restarts"]
    attempt.leave(guard, {name: Standing(restarts=tuple(spent)) for name, spent in restarts.items()})
