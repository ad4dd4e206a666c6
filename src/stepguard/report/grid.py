"""Recorded attempts under many variants of rules at once: each frame is read once, for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from stepguard.engine import Engine
from stepguard.errors import RunFileError
from stepguard.report.palette import BAD
from stepguard.report.stretches import happenings, stretches
from stepguard.rules.sweep import Variant
from stepguard.series.runfile import AttemptRecord, RunFile

_MOST_COLUMNS = 5


class Firings(NamedTuple):
    """When the varied rules fired in an attempt under one variant."""

    first: int | None
    """The step of the first alert; None if there was none."""
    alerts: int
    """How many there were, of all layers and varied rules together."""

    def __str__(self) -> str:
        if self.first is None:
            return "-"
        return f"step {self.first}" + (f", {self.alerts} alerts" if self.alerts > 1 else "")


class Row(NamedTuple):
    """One attempt of a run."""

    run: str
    attempt: int
    outcome: str
    """How it ended live; empty where it goes on, or was killed."""
    firings: tuple[Firings, ...]
    """Of each variant."""


def fire(recording: RunFile, record: AttemptRecord, variants: Sequence[Variant]) -> Row:
    """Evaluate all variants on the frames of an attempt; RunFileError if the recording lacks something."""
    if "total_steps" not in record.info:
        raise RunFileError(f"{recording.path}: attempt {record.number} does not say 'total_steps'")
    engines = [Engine(variant.rules, record.layers, record.info["total_steps"]) for variant in variants]
    steps: list[list[int]] = [[] for _ in engines]
    signals = frozenset[str]().union(*(variant.rules.signals for variant in variants))
    for block in stretches(recording.blocks(record.number, signals)):
        for engine, fired in zip(engines, steps, strict=True):
            for changes in happenings(block, engine.pass_over, engine.evaluate):
                fired += [change.step for change in changes if change.state == "firing"]
    firings = tuple(Firings(fired[0] if fired else None, len(fired)) for fired in steps)
    return Row(recording.path.stem, record.number, record.outcome or "", firings)


def grid_table(labels: Sequence[str], rows: Sequence[Row]) -> Table:
    """Attempts by variants: a column for each variant where there are few of them, else a line."""
    return _wide(labels, rows) if len(labels) <= _MOST_COLUMNS else _tall(labels, rows)


def _wide(labels: Sequence[str], rows: Sequence[Row]) -> Table:
    made = Table("run", "attempt", "ended", *labels)
    for row in rows:
        made.add_row(row.run, str(row.attempt), row.outcome, *map(_cell, row.firings))
    if len(rows) > 1:
        made.add_section()
        made.add_row("fired in", "", "", *(_total(rows, place) for place in range(len(labels))))
    return made


def _tall(labels: Sequence[str], rows: Sequence[Row]) -> Table:
    shown = rows[:_MOST_COLUMNS]
    made = Table("values", *(f"{row.run} #{row.attempt}" for row in shown), "fired in")
    for place, label in enumerate(labels):
        made.add_row(label, *(_cell(row.firings[place]) for row in shown), _total(rows, place))
    return made


def _cell(firings: Firings) -> Text:
    return Text(str(firings), style="" if firings.first is None else BAD)


def _total(rows: Sequence[Row], place: int) -> str:
    return f"{sum(row.firings[place].first is not None for row in rows)} of {len(rows)}"
