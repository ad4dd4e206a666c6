"""Every exception and warning of stepguard, on one page.

StepguardError
├── RuleFileError        a rule file has faults; `.problems` lists all of them
├── RunFileError         a run file cannot be read
└── TrainingStopped      the guard ends this attempt; `.diagnosis`, `.step`, `.rule`
    ├── TrainingHalted   a person must look
    └── RestartRequested the next attempt should begin, with `.remedy`

StepguardWarning         said once, the training goes on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class StepguardError(Exception):
    """Base of all errors that stepguard raises on purpose."""


class StepguardWarning(UserWarning):
    """Something is wrong with the guard's set-up or with the guard itself; the training goes on."""


@dataclass(frozen=True)
class Place:
    """Where in a file something stands: line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One fault of a rule file, as a person reads it."""

    place: Place
    what: str
    """What is wrong, with what was expected, what was found, and the nearest right word."""
    rule: str | None = None

    def __str__(self) -> str:
        rule = f" rule '{self.rule}':" if self.rule else ""
        return f"{self.place}:{rule} {self.what}"


class RuleFileError(StepguardError):
    """A rule file cannot be used; `problems` holds every fault of every file, in order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RunFileError(StepguardError):
    """A run file is missing, is not a run file, or was written by a newer version."""


class TrainingStopped(StepguardError):
    """The guard ended this attempt of the training before the weights were touched again."""

    def __init__(self, diagnosis: str, *, step: int, rule: str) -> None:
        self.diagnosis = diagnosis
        self.step = step
        self.rule = rule
        super().__init__(diagnosis)


class TrainingHalted(TrainingStopped):
    """A rule halted the training: it should not go on before a person has looked."""


class RestartRequested(TrainingStopped):
    """A rule asks for the next attempt; `remedy` is what it should change, as the rule file has it."""

    def __init__(
        self, diagnosis: str, *, step: int, rule: str, remedy: Mapping[str, float | str] | None = None
    ) -> None:
        super().__init__(diagnosis, step=step, rule=rule)
        self.remedy = dict(remedy or {})
