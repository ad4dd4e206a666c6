"""Alerts and decisions of one attempt in time: a row for each rule, a column for some steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from stepguard.report.palette import FIRST, QUIET, SEVERITY
from stepguard.report.sparkline import BLOCKS
from stepguard.report.summary import count_alerts
from stepguard.report.words import count
from stepguard.rules.alert import Change

if TYPE_CHECKING:
    from stepguard.recover.decision import Decision

_NOTE = 30
"""Characters right of the strips."""


class Span(NamedTuple):
    """Something that was on at a place, both steps included."""

    place: str
    begin: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """When each rule fired, at how many layers (the height of a block), and what the guard did."""

    steps: tuple[int, int]
    """First and last step of the attempt."""
    changes: Sequence[Change]
    decisions: Sequence[Decision] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [*self._alert_rows(), *self._decision_rows()]
        if not rows:
            yield Text("no alerts", style=QUIET)
            return
        names = max(len(name) for name, *_ in rows)
        steps = self.steps[1] - self.steps[0] + 1
        columns = max(min(options.max_width - names - _NOTE - 4, steps), 10)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, width=columns)
        grid.add_column(no_wrap=True, style=QUIET, width=_NOTE, overflow="ellipsis")
        for name, spans, mark, style, note in rows:
            grid.add_row(Text(name), self._strip(spans, mark, style, columns), note)
        first, last = (f"{step:,}" for step in self.steps)
        grid.add_row("", Text(f"{first}{last:>{max(columns - len(first), 0)}}", style=QUIET), "")
        yield grid

    def _alert_rows(self) -> Iterator[tuple[str, list[Span], str, str, str]]:
        for alert in count_alerts(self.changes):
            at = f", {count(len(alert.layers), 'layer')}" if alert.layers else ""
            spans = _spans([c for c in self.changes if c.rule == alert.rule], self.steps[1])
            yield (
                alert.rule,
                spans,
                BLOCKS[:6],
                SEVERITY[alert.severity],
                f"from step {alert.first_step:,}{at}",
            )

    def _decision_rows(self) -> Iterator[tuple[str, list[Span], str, str, str]]:
        for kind in dict.fromkeys(d.kind for d in self.decisions if d.kind != "warn"):
            taken = [d.step for d in self.decisions if d.kind == kind]
            note = f"step {taken[0]:,}" if len(taken) == 1 else f"{count(len(taken), 'time')}"
            yield f"-> {kind}", [Span("", step, step) for step in taken], "▲", FIRST, note

    def _strip(self, spans: Sequence[Span], marks: str, style: str, columns: int) -> Text:
        """One character a column: the mark for the share of places that were on in it."""
        on = self._on(spans, columns)
        heights = np.ceil(on / max(on.max(), 1) * len(marks)).astype(int) - 1
        text = Text(no_wrap=True)
        for height in heights.tolist():
            text.append(marks[height] if height >= 0 else "·", style if height >= 0 else QUIET)
        return text

    def _on(self, spans: Sequence[Span], columns: int) -> NDArray[np.int64]:
        """At how many places something was on in each column."""
        first, last = self.steps
        places = {place: np.zeros(columns, np.bool_) for place, *_ in spans}
        for place, begin, end in spans:
            left, right = ((step - first) * columns // (last - first + 1) for step in (begin, end))
            places[place][left : right + 1] = True
        return np.array(list(places.values()), np.int64).sum(axis=0)


def _spans(changes: Sequence[Change], last: int) -> list[Span]:
    """From the step at which a rule began to fire at a layer to the one before it ended."""
    spans: list[Span] = []
    begun: dict[str | None, Change] = {}
    for change in changes:
        start = begun.pop(change.layer, None)
        if start is not None:
            spans += _span(start, max(change.step - 1, start.step))
        if change.state == "firing":
            begun[change.layer] = change
    return spans + [span for start in begun.values() for span in _span(start, last)]


def _span(start: Change, end: int) -> list[Span]:
    """One span for the alert's layer; for one on the whole run, one for each layer of its evidence."""
    layers = start.evidence.layers if start.layer is None and start.evidence else ()
    return [Span(place, start.step, end) for place in layers or (start.layer or "",)]
