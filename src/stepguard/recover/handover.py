"""What `stepguard run` and the training that it started hand each other: small files in one folder.

Flow: before an attempt the supervisor writes the attempt; the training maps the heartbeat into its memory
and counts there; whoever ends the attempt on purpose leaves a word of it. Without torch, for both sides.

A kill at any moment leaves each file whole: the heartbeat's numbers lie in memory that the kernel keeps, and
the other files are renamed into place.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Standing

FOLDER = "STEPGUARD_HANDOVER"
"""The environment variable that names the folder."""
_ATTEMPT, _BEGUN, _BEAT, _END = "attempt.json", "begun.json", "heartbeat", "end.json"
_SIGNS, _STEP, _PHASE = range(3)
_NUMBERS = "3q"
QUIET, STEPPING, CLOSED = range(3)
"""Phases of a training: no step yet, between its first step and its end, and after the guard was closed."""


class Beat(NamedTuple):
    """How far a training has come."""

    signs: int = 0
    """Signs of life so far: steps, and whatever else the guard hears of."""
    step: int = -1
    """The last step that came to the guard; -1 before the first."""
    phase: int = QUIET


class Begun(NamedTuple):
    """The process of an attempt that reports."""

    pid: int
    guarded: bool
    """Whether it has made a guard by now."""
    number: int = 0
    """Of the attempt in the run file: a resumed one goes on under its old number."""
    run_path: str | None = None


@dataclass(frozen=True)
class End:
    """How an attempt ended, as the training itself tells."""

    kind: Literal["restart", "halt", "signal", "error"]
    step: int
    cause: str
    """The rule, the signal's name, or the exception as Python prints it."""
    diagnosis: str = ""
    remedy: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    standings: Mapping[str, Standing] = field(default_factory=dict[str, Standing])


class Heartbeat:
    """Three numbers in a file that is mapped into memory: a beat costs a write to memory, no system call."""

    def __init__(self, folder: Path) -> None:
        """Map the heartbeat that `Handover.offer` has laid into the folder; OSError if there is none."""
        with (folder / _BEAT).open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), struct.calcsize(_NUMBERS))).cast("q")

    def step(self, step: int) -> None:
        """A step has come to the guard."""
        numbers = self._numbers
        numbers[_STEP] = step
        numbers[_PHASE] = STEPPING
        numbers[_SIGNS] += 1

    def alive(self) -> None:
        """A sign of life that is no step."""
        self._numbers[_SIGNS] += 1

    def close(self) -> None:
        """No more steps are to be expected."""
        self._numbers[_PHASE] = CLOSED
        self._numbers[_SIGNS] += 1

    def read(self) -> Beat:
        """How far the training has come."""
        return Beat(*self._numbers)


class Handover:
    """The folder of one supervised run, seen from either side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def offer(self, attempt: Attempt) -> Heartbeat:
        """Lay out a new attempt; what the one before has left is taken away."""
        for name in (_BEGUN, _END, _BEAT):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / _BEAT).write_bytes(struct.pack(_NUMBERS, *Beat()))
        self._write(_ATTEMPT, attempt_as_json(attempt))
        return Heartbeat(self.folder)

    def attempt(self) -> Attempt:
        """The attempt that was laid out. OSError or ValueError if it cannot be read."""
        return attempt_from_json(json.loads((self.folder / _ATTEMPT).read_text(encoding="utf-8")))

    def claim(self) -> bool:
        """Ask to be the process that reports: True for the first one only, of several ranks for example."""
        try:
            with (self.folder / _BEGUN).open("x", encoding="utf-8") as file:
                json.dump(Begun(os.getpid(), guarded=False), file)
        except FileExistsError:
            return False
        return True

    def begin(self, number: int, run_path: Path | None) -> None:
        """A guard was made in this process: where its run file lies. An end told before is undone."""
        (self.folder / _END).unlink(missing_ok=True)
        path = None if run_path is None else str(run_path.absolute())
        self._write(_BEGUN, Begun(os.getpid(), guarded=True, number=number, run_path=path))

    def begun(self) -> Begun | None:
        """The process that reports, if one does by now."""
        found = self._read(_BEGUN)
        return None if found is None else Begun(*found)

    def end(self, end: End) -> None:
        """Say how the attempt ends."""
        self._write(_END, asdict(end))

    def ended(self) -> End | None:
        """What the training said of its end, if it did."""
        found: dict[str, Any] | None = self._read(_END)
        if found is None:
            return None
        fields = dict(found)
        fields["standings"] = _standings(found["standings"])
        return End(**fields)

    def _write(self, name: str, value: Any) -> None:
        """Put a file in its place as a whole."""
        draft = self.folder / f"{name}.{os.getpid()}"
        draft.write_text(json.dumps(value), encoding="utf-8")
        draft.replace(self.folder / name)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def attempt_as_json(attempt: Attempt) -> dict[str, Any]:
    """All of an attempt that another process needs."""
    return {
        "number": attempt.number,
        "last": attempt.last,
        "seed": attempt.seed,
        "lr_scale": attempt.lr_scale,
        "init": attempt.init,
        "clip": attempt.clip,
        "pace": attempt.pace,
        "standings": {name: asdict(standing) for name, standing in attempt.standings.items()},
        "run_path": None if attempt.run_path is None else str(attempt.run_path),
        "resume": None if attempt.resume is None else str(attempt.resume),
    }


def attempt_from_json(value: Mapping[str, Any]) -> Attempt:
    """The attempt that `attempt_as_json` wrote."""
    fields = dict(value)
    for name in ("run_path", "resume"):
        fields[name] = None if value[name] is None else Path(value[name])
    fields["standings"] = _standings(value["standings"])
    return Attempt(**fields)


def _standings(value: Mapping[str, Mapping[str, Any]]) -> dict[str, Standing]:
    return {
        rule: Standing(**{name: _frozen(field) for name, field in fields.items()})
        for rule, fields in value.items()
    }


def _frozen(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
