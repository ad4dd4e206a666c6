"""Rule tests: series in, the exact set of alerts out, through the same engine as a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stepguard.rules.alert import Change
from stepguard.rules.rule import Ruleset
from stepguard.rules.testfile import Alert, RuleTest, read_tests
from stepguard.signals import Frame, Layer


class Evaluates(Protocol):
    """What a rule test needs of an engine."""

    def evaluate(self, frame: Frame) -> Sequence[Change]:
        """Evaluate every rule at a frame."""
        ...

    def take_failures(self) -> list[tuple[str, str]]:
        """Name the rules that failed since the last call, with the reason."""
        ...


EngineMaker = Callable[[Ruleset, Sequence[Layer], int | None], Evaluates]
"""Makes an engine for rules, layers, and the planned number of steps."""


@dataclass(frozen=True)
class Outcome:
    """What became of a test."""

    test: RuleTest
    fired: frozenset[Alert]
    failures: tuple[tuple[str, str], ...] = ()
    """Rules that failed while they ran, with the reason."""

    @property
    def missing(self) -> frozenset[Alert]:
        """Give the alerts that were expected and did not fire."""
        return self.test.expected - self.fired

    @property
    def unexpected(self) -> frozenset[Alert]:
        """Give the alerts that fired and were not expected."""
        return self.fired - self.test.expected

    @property
    def passed(self) -> bool:
        """Whether exactly the expected alerts fired, and no rule failed."""
        return self.fired == self.test.expected and not self.failures


def run_file(path: Path, engine: EngineMaker) -> tuple[Outcome, ...]:
    """Run all tests of a file; RuleFileError with every fault of it and of the rules that it names."""
    return tuple(run_test(test, engine) for test in read_tests(path))


def run_test(test: RuleTest, engine: EngineMaker) -> Outcome:
    """Run one test: every `Change` to firing is an alert."""
    made = engine(test.rules, test.layers, test.total_steps)
    changes = [change for step in range(test.steps) for change in made.evaluate(test.frame(step))]
    fired = [Alert(change.rule, change.layer, change.step) for change in changes if change.state == "firing"]
    return Outcome(test, frozenset(fired), tuple(made.take_failures()))
