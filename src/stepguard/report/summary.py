"""What became of a run: its attempts, alerts, decisions and last values, and where the run file lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepguard.report.palette import BAD, GOOD, QUIET, SECOND, SEVERITY
from stepguard.report.words import count, number, settings, short_deed
from stepguard.rules.alert import Change
from stepguard.rules.rule import Severity

if TYPE_CHECKING:
    from stepguard.recover.decision import Decision

_LONGEST = 60
"""Characters of an outcome in a table."""
COMPLETED = "completed"
"""The outcome of an attempt that nothing ended early."""
KEPT = "kept"
"""How the outcome of an attempt begins which should have done better than one before, and was ended."""


@dataclass(frozen=True)
class AlertCount:
    """A rule that fired in an attempt."""

    rule: str
    severity: Severity
    first_step: int
    times: int
    """Steps at which it began to fire at one layer or more."""
    layers: tuple[str, ...]
    """Every layer at which it fired, in the order in which they were first seen; empty for the whole run."""


def count_alerts(changes: Sequence[Change]) -> tuple[AlertCount, ...]:
    """Put the alerts that began to fire together by rule, in the order of their first step."""
    firing: dict[str, list[Change]] = {}
    for change in changes:
        if change.state == "firing":
            firing.setdefault(change.rule, []).append(change)
    return tuple(_alert_count(alike) for alike in firing.values())


def _alert_count(changes: Sequence[Change]) -> AlertCount:
    layers = dict.fromkeys(layer for change in changes for layer in _layers(change))
    first = changes[0]
    return AlertCount(first.rule, first.severity, first.step, len({c.step for c in changes}), tuple(layers))


def _layers(change: Change) -> tuple[str, ...]:
    if change.layer is not None:
        return (change.layer,)
    return change.evidence.layers if change.evidence else ()


@dataclass(frozen=True)
class AttemptSummary:
    """One try at the training."""

    number: int
    """From 1."""
    steps: int
    outcome: str
    """`completed`, `restart: RULE`, `halt: RULE`, `kept: RULE`, `error: ...`; empty where not closed."""
    info: Mapping[str, float | str | None] = field(default_factory=dict[str, "float | str | None"])
    """What it began with: `seed`, `lr_scale`, `init`, `clip`, `pace`."""
    loss: float | None = None
    """The last loss."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """The last value of whatever the user logged, without the prefix `metric.`."""
    alerts: tuple[AlertCount, ...] = ()
    decisions: tuple[Decision, ...] = ()

    def remedy(self) -> str:
        """What this attempt changed of the code's own settings: `learning rate x0.5, LSUV initialisation`."""
        scale = self.info.get("lr_scale")
        changed = {"lr": None if scale == 1 else scale}
        changed |= {name: self.info.get(name) for name in ("init", "clip", "pace")}
        return settings({name: value for name, value in changed.items() if value is not None})


@dataclass(frozen=True)
class Summary:
    """A whole run: rendered by rich a few aligned lines, `lines()` the same for a log."""

    attempts: tuple[AttemptSummary, ...]
    run: str | None = None
    """Where the run file lies."""

    def lines(self) -> list[str]:
        """One plain line an attempt, a rule that fired, a kind of decision, and the run file."""
        told = [line for attempt in self.attempts for line in _attempt_lines(attempt)]
        if self.run is not None:
            told.append(f"run file {self.run}")
        return [f"stepguard: {line}" for line in told]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps = sum(attempt.steps for attempt in self.attempts)
        yield Text(f"stepguard: {count(len(self.attempts), 'attempt')}, {count(steps, 'step')}", style="bold")
        yield Padding(_attempts_table(self.attempts), (0, 0, 0, 2))
        if any(attempt.alerts for attempt in self.attempts):
            yield Padding(_alerts_table(self.attempts), (1, 0, 0, 2))
        if self.run is not None:
            yield Padding(Text.assemble(("run file  ", QUIET), self.run), (1, 0, 0, 2))


def _attempt_lines(attempt: AttemptSummary) -> Iterator[str]:
    begun = attempt.remedy()
    told = [count(attempt.steps, "step"), attempt.outcome or "not closed", *_last_values(attempt)]
    name = f"attempt {attempt.number}" + (f" ({begun})" if begun else "")
    yield f"{name}: {', '.join(told)}"
    for alert in attempt.alerts:
        at = f" at {count(len(alert.layers), 'layer')}" if alert.layers else ""
        yield (
            f"attempt {attempt.number}: {alert.severity}: {alert.rule}:"
            f" first at step {alert.first_step}, fired {count(alert.times, 'time')}{at}"
        )
    for deed, times in _deeds(attempt):
        yield f"attempt {attempt.number}: {deed}: {count(times, 'time')}"


def _last_values(attempt: AttemptSummary) -> list[str]:
    loss = [] if attempt.loss is None else [f"loss {number(attempt.loss)}"]
    return loss + [f"{name} {number(value)}" for name, value in attempt.metrics.items()]


def _deeds(attempt: AttemptSummary) -> list[tuple[str, int]]:
    """Every decision but warnings with how often it was taken, in order."""
    acted = [decision for decision in attempt.decisions if decision.kind != "warn"]
    return list(Counter(f"{d.rule} -> {short_deed(d)}" for d in acted).items())


def _attempts_table(attempts: Sequence[AttemptSummary]) -> Table:
    metrics = list(dict.fromkeys(name for attempt in attempts for name in attempt.metrics))
    table = _table("attempt", "began with", "steps", "ended", "loss", *map(escape, metrics))
    for column in (0, 2, *range(4, 5 + len(metrics))):
        table.columns[column].justify = "right"
    for attempt in attempts:
        table.add_row(
            str(attempt.number),
            Text(attempt.remedy() or "your settings"),
            f"{attempt.steps:,}",
            _outcome(attempt.outcome),
            number(attempt.loss),
            *(number(attempt.metrics.get(name)) for name in metrics),
        )
    return table


def _outcome(outcome: str) -> Text:
    if not outcome:
        return Text("not closed", style=QUIET)
    style = GOOD if outcome == COMPLETED else SECOND if outcome.startswith(("restart", KEPT)) else BAD
    line = outcome.split("\n", 1)[0]
    return Text(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...", style=style)


def _alerts_table(attempts: Sequence[AttemptSummary]) -> Table:
    table = _table("attempt", "alert", "severity", "first step", "times", "layers", "what was done")
    for column in (0, 3, 4, 5):
        table.columns[column].justify = "right"
    for attempt in attempts:
        for alert in attempt.alerts:
            table.add_row(
                str(attempt.number),
                Text(alert.rule),
                Text(alert.severity, style=SEVERITY[alert.severity]),
                f"{alert.first_step:,}",
                f"{alert.times:,}",
                f"{len(alert.layers):,}" if alert.layers else "-",
                _done(attempt, alert.rule),
            )
    return table


def _done(attempt: AttemptSummary, rule: str) -> str:
    """What was decided for a rule: each kind once, with how often."""
    asked = (d for d in attempt.decisions if d.rule == rule or rule in d.also)
    kinds = Counter(f"would {d.kind}" if d.dry_run else d.kind for d in asked)
    return ", ".join(kind if times == 1 else f"{kind} {times} times" for kind, times in kinds.items())


def _table(*names: str) -> Table:
    table = Table(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    for column in table.columns:
        column.overflow = "fold"
    return table
