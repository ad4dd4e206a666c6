"""`stepguard replay`: what rules make of recorded runs, and when."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from stepguard.errors import RunFileError
from stepguard.report.grid import Row, fire, grid_table
from stepguard.report.recorded import Happenings, happenings
from stepguard.report.recorder import as_json
from stepguard.report.replay import Replay, recorded_rules, replay
from stepguard.report.words import count, short_deed
from stepguard.rules import sweep
from stepguard.rules.alert import Change
from stepguard.rules.packs import load_rules
from stepguard.rules.rule import Ruleset
from stepguard.rules.sweep import Variant, read_axis, variants
from stepguard.series.runfile import DROPPED, AttemptRecord, RunFile, find_run, find_runs

FINE, FINDINGS, UNREADABLE = 0, 1, 2

Made = TypeVar("Made")


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "replay",
        help="what rules make of recorded runs",
        description=f"{__doc__}\n\nNumbers that --grid varies:\n{_numbers()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run file, or a folder: its newest run")
    parser.add_argument("--all", action="store_true", help="all runs of the folder")
    parser.add_argument(
        "--rules", nargs="+", metavar="R", help="rule files or packs; default: those of the recording"
    )
    parser.add_argument(
        "--grid",
        action="append",
        metavar="RULE.SETTING=V1,V2",
        help="only tell when RULE fires, with each of these values; several give all combinations",
    )
    parser.add_argument("--attempt", type=int, metavar="N", help="default: all")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def _numbers() -> str:
    """How the numbers of a rule are named."""
    return (sweep.__doc__ or "").partition("goes by what it belongs to:")[2].strip("\n")


def run(args: argparse.Namespace) -> int:
    """Replay the runs; 1 where the recorded rules give other alerts or decisions than they gave live.

    With `--all` a run that cannot be read is named and left out, and the code is 2.
    """
    rules = None if args.rules is None else load_rules(args.rules)
    found = _replays(args, rules) if args.grid is None else _grid(args, rules)
    return UNREADABLE if found.unreadable else found.code


class _Done(NamedTuple):
    """What became of all runs."""

    code: int
    unreadable: bool


def _replays(args: argparse.Namespace, rules: Ruleset | None) -> _Done:
    runs = list(_each(args, lambda recording: _replayed(recording, args.attempt, rules)))
    read = [each for each in runs if each is not None]
    _FORMATS[args.format](read, rules is None, args.all)
    dropped = any(each.dropped for each in read)
    if dropped:
        Console(stderr=True).print(
            "frames are missing from the recording, or were thinned: alerts may differ from the live run"
        )
    same = all(compared.same for each in read if not each.dropped for compared in each.attempts)
    return _Done(FINE if rules is not None or same else FINDINGS, len(read) < len(runs))


def _each(args: argparse.Namespace, make: Callable[[RunFile], Made]) -> Iterator[Made | None]:
    """What is made of each run; None for one that cannot be read among several."""
    for path in find_runs(args.run) if args.all else [find_run(args.run)]:
        try:
            with RunFile(path) as recording:
                yield make(recording)
        except RunFileError as error:
            if not args.all:
                raise
            Console(stderr=True).print(f"stepguard replay: {error}", markup=False, highlight=False)
            yield None


def _records(recording: RunFile, attempt: int | None) -> list[AttemptRecord]:
    records = [record for record in recording.attempts() if attempt in (None, record.number)]
    if not records:
        raise RunFileError(f"{recording.path}: expected an attempt {attempt or 1}, got none of that number")
    return records


class _Run(NamedTuple):
    """A replayed run."""

    path: str
    attempts: list[_Compared]
    dropped: bool
    """Whether frames are missing from the recording, or were thinned."""


def _replayed(recording: RunFile, attempt: int | None, rules: Ruleset | None) -> _Run:
    records = _records(recording, attempt)
    compared = [_Compared(replay(recording, r, rules), _recorded(recording, r.number)) for r in records]
    dropped = any(
        any(recording.events(r.number, DROPPED)) or recording.thinned(r.number) is not None for r in records
    )
    return _Run(str(recording.path), compared, dropped)


def _grid(args: argparse.Namespace, rules: Ruleset | None) -> _Done:
    def rows(recording: RunFile) -> list[tuple[list[Variant], Row]]:
        made: list[tuple[list[Variant], Row]] = []
        for record in _records(recording, args.attempt):
            base = rules or recorded_rules(recording, record)
            chosen = variants(base, [read_axis(text, base) for text in args.grid])
            made.append((chosen, fire(recording, record, chosen)))
        return made

    runs = list(_each(args, rows))
    found = [each for run in runs if run is not None for each in run]
    labels = [variant.label for variant in found[0][0]] if found else []
    _GRIDS[args.format](labels, [row for _, row in found])
    return _Done(FINE, None in runs)


def _recorded(recording: RunFile, attempt: int) -> Happenings:
    return happenings((event.kind, event.data) for event in recording.events(attempt))


@dataclass(frozen=True)
class _Compared:
    """A replayed attempt beside what was recorded of it."""

    replayed: Replay
    recorded: Happenings

    @property
    def same(self) -> bool:
        """Whether changes of alerts and decisions are the same, every measured number included."""
        return _plain(self.replayed.changes) == _plain(self.recorded.changes) and _plain(
            self.replayed.decisions
        ) == _plain(self.recorded.decisions)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Alerts and decisions in time: step, what, where, what it says."""
        decisions = {decision.step: decision for decision in self.replayed.decisions}
        for change in self.replayed.fired:
            decision = decisions.get(change.step)
            deed = short_deed(decision) if decision is not None and decision.rule == change.rule else ""
            yield str(change.step), change.severity, change.rule, _where(change), change.message, deed


def _plain(things: Sequence[Any]) -> str:
    # Text, in which NaN equals NaN; the places of rules are not part of it.
    return json.dumps([as_json(thing) for thing in things], sort_keys=True)


def _where(change: Change) -> str:
    layers = change.evidence.layers if change.evidence else ()
    if change.layer is not None or not layers:
        return change.layer or ""
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"


def _text(runs: Sequence[_Run], own_rules: bool, several: bool) -> None:
    console = Console()
    for each in runs:
        if several:
            console.print(each.path, style="bold", highlight=False)
        for compared in each.attempts:
            replayed = compared.replayed
            title = f"attempt {replayed.attempt}: {count(replayed.steps, 'step')}"
            table = Table(
                "step", "severity", "rule", "layer", "message", "then", title=title, title_justify="left"
            )
            for row in compared.rows():
                table.add_row(*row)
            console.print(table if table.row_count else f"{title}: no alert")
            console.print(_verdict(compared, own_rules))


def _verdict(each: _Compared, own_rules: bool) -> str:
    if own_rules:
        return "the same as live" if each.same else "NOT the same as live"
    live = {
        change.rule: change.step for change in reversed(each.recorded.changes) if change.state == "firing"
    }
    told = ", ".join(
        f"{rule} at step {step}" for rule, step in sorted(live.items(), key=lambda item: item[1])
    )
    return f"live fired: {told or 'nothing'}"


def _json(runs: Sequence[_Run], own_rules: bool, several: bool) -> None:
    objects = [
        {"run": each.path, "own_rules": own_rules, "attempts": [_attempt(one) for one in each.attempts]}
        for each in runs
    ]
    print(json.dumps(objects if several else objects[0], indent=2))


def _attempt(each: _Compared) -> dict[str, Any]:
    return {
        "attempt": each.replayed.attempt,
        "steps": each.replayed.steps,
        "alerts": [as_json(change) for change in each.replayed.fired],
        "decisions": [as_json(decision) for decision in each.replayed.decisions],
        "same_as_live": each.same,
    }


def _grid_text(labels: Sequence[str], rows: Sequence[Row]) -> None:
    Console().print(grid_table(labels, rows) if rows else "no attempt")


def _grid_json(labels: Sequence[str], rows: Sequence[Row]) -> None:
    runs = [row._asdict() | {"firings": [each._asdict() for each in row.firings]} for row in rows]
    print(json.dumps({"grid": labels, "attempts": runs}, indent=2))


_FORMATS = {"text": _text, "json": _json}
_GRIDS = {"text": _grid_text, "json": _grid_json}
