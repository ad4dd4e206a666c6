"""All that one guarded attempt tells: the run file, the console, the closing summary.

Flow: in comes one observation a step; out go the run file's rows, the console's lines, and at the end a
summary.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Observation
from stepguard.report.console import ConsoleReporter
from stepguard.report.diagnosis import Diagnosis
from stepguard.report.faults import Faults
from stepguard.report.findings import Past
from stepguard.report.recorder import Recorder, Tally, Teller, diagnoses
from stepguard.report.summary import Summary
from stepguard.rules.dump import dump_rules
from stepguard.rules.rule import Ruleset
from stepguard.series.runfile import AttemptRecord, RunWriter
from stepguard.series.set_aside import set_aside


class Reports:
    """Hands each observation to run file and console, and ends both.

    `model` is its name, by which guards are told apart where several are open.
    """

    def __init__(
        self,
        rules: Ruleset,
        attempt: Attempt,
        *,
        model: str,
        run: str | Path | None,
        console: Console | Literal["auto"] | None,
        faults: Faults,
        total_steps: int | None,
        dry_run: bool,
    ) -> None:
        self._attempt, self._faults = attempt, faults
        self._rules = {rule.name: rule for rule in rules.rules}
        info = {
            "seed": attempt.seed,
            "lr_scale": attempt.lr_scale,
            "init": attempt.init,
            "clip": attempt.clip,
            "pace": attempt.pace,
            "total_steps": total_steps,
            "dry_run": dry_run,
        }
        self._past = Past.none()
        self._tally = Tally(attempt.number, info)
        shown = Console(stderr=True) if console == "auto" else console
        self._console = None if shown is None else ConsoleReporter(shown, model)
        self._tell = None if self._console is None else Teller(self._console)
        self.run_path, self._writer = self._open(run)
        self._record: Recorder | None = None
        if self._writer is not None:
            self._writer.begin_attempt(attempt.number, {**info, **_replayable(rules, attempt)})
            self._record = Recorder(self._writer)

    def _open(self, run: str | Path | None) -> tuple[Path | None, RunWriter | None]:
        """Open the run file: that of the attempts before, or a new one in the folder."""
        if run is None:
            return None, None
        first = not self._attempt.guards
        path = self._attempt.run_path if first else None
        try:
            if path is None:
                Path(run).mkdir(parents=True, exist_ok=True)
                path = _fresh(Path(run))
            writer = RunWriter(path)
        except Exception as fault:
            self._faults.say(
                f"the run folder {str(run)!r} cannot be written ({type(fault).__name__}: {fault});"
                " the training is guarded, but not recorded (run=None says so on purpose)"
            )
            return None, None
        if first:
            self._attempt.run_path = path
        return path, writer

    def __call__(self, observation: Observation) -> list[Diagnosis]:
        """Tell one step; return the diagnoses of the rules that began to fire."""
        self._past.see(observation.frame)
        found = diagnoses(observation, self._rules, self._past)
        self._tally(observation)
        if self._record is not None:
            self._record(observation, found)
        if self._tell is not None:
            self._tell(observation, found)
        return found

    def event(self, kind: str, step: int, data: Mapping[str, Any]) -> None:
        """Record something that is neither an alert nor a decision."""
        if self._writer is not None:
            self._writer.event(kind, step, data)

    def go_on(self, path: Path, record: AttemptRecord, step: int) -> None:
        """Go on with a run that was broken off, from `step`; the file that was begun for this one goes away.

        Raises RunFileError or sqlite3.Error if the run file cannot be written.
        """
        begun, writer = self.run_path, self._writer
        if writer is not None:
            writer.close()
        set_aside(path, record.number, step)
        self._writer = RunWriter(path)
        self._writer.begin_attempt(record.number, record.info)
        self._record, self.run_path = Recorder(self._writer), path
        if begun is not None and not begun.samefile(path):
            begun.unlink()
        if self._attempt.run_path == begun:
            self._attempt.run_path = path
        self._tally.steps = step

    def note(self, text: str) -> None:
        """Tell something that is no alert."""
        if self._console is not None:
            self._console.note(text)

    def close(self, outcome: str, metrics: Mapping[str, float]) -> None:
        """End the attempt; print a summary unless another attempt follows."""
        self._tally.log(metrics)
        if self._writer is not None:
            if metrics:
                self._writer.event("metrics", self._tally.steps, metrics)
            self._writer.end_attempt(outcome)
            self._writer.close()
        self._attempt.past = (*self._attempt.past, self._tally.summary(outcome))
        if self._console is None:
            return
        if self._attempt.last or not outcome.startswith("restart"):
            path = None if self.run_path is None else str(self.run_path)
            self._console.summary(Summary(self._attempt.past, path))
        self._console.close()


def _fresh(folder: Path) -> Path:
    """A name for a new run file that no other run in the folder has."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    names = (f"{stem}{suffix}.sqlite" for suffix in ("", *(f"-{i}" for i in range(2, 10_000))))
    return next(folder / name for name in names if not (folder / name).exists())


def _replayable(rules: Ruleset, attempt: Attempt) -> dict[str, Any]:
    """What a replay needs beside the frames, and the rule files as they were written."""
    guard = len(attempt.guards)
    restarts = {name: list(each.restarts) for name, each in attempt.standings_of(guard).items()}
    return {
        "rules": dump_rules(rules),
        "files": dict(rules.texts),
        "restarts": restarts,
        "guard": guard,
    }
