"""`stepguard replay`: what rules make of a recorded run, and when."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from stepguard.errors import RunFileError
from stepguard.report.recorded import Happenings, happenings
from stepguard.report.recorder import as_json
from stepguard.report.replay import Replay, replay
from stepguard.report.words import count, short_deed
from stepguard.rules.alert import Change
from stepguard.rules.packs import load_rules
from stepguard.series.runfile import DROPPED, RunFile, find_run

FINE, FINDINGS = 0, 1


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("replay", help="what rules make of a recorded run", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run file, or a folder: its newest run")
    parser.add_argument(
        "--rules", nargs="+", metavar="R", help="rule files or packs; default: those of the recording"
    )
    parser.add_argument("--attempt", type=int, metavar="N", help="default: all")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """Replay the run; 1 where the recorded rules give other alerts or decisions than they gave live."""
    path = find_run(args.run)
    rules = None if args.rules is None else load_rules(args.rules)
    with RunFile(path) as recording:
        records = [r for r in recording.attempts() if args.attempt in (None, r.number)]
        if not records:
            raise RunFileError(f"{path}: expected an attempt {args.attempt or 1}, got none of that number")
        compared = [_Compared(replay(recording, r, rules), _recorded(recording, r.number)) for r in records]
        dropped = any(True for r in records for _ in recording.events(r.number, DROPPED))
    _FORMATS[args.format](str(path), compared, rules is None)
    if dropped:
        Console(stderr=True).print(
            "frames are missing from the recording: alerts may differ from the live run"
        )
    same = all(each.same for each in compared)
    return FINE if rules is not None or same or dropped else FINDINGS


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


def _text(path: str, compared: Sequence[_Compared], own_rules: bool) -> None:
    console = Console()
    for each in compared:
        replayed = each.replayed
        title = f"attempt {replayed.attempt}: {count(replayed.steps, 'step')}"
        table = Table(
            "step", "severity", "rule", "layer", "message", "then", title=title, title_justify="left"
        )
        for row in each.rows():
            table.add_row(*row)
        console.print(table if table.row_count else f"{title}: no alert")
        console.print(_verdict(each, own_rules))


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


def _json(path: str, compared: Sequence[_Compared], own_rules: bool) -> None:
    attempts = [
        {
            "attempt": each.replayed.attempt,
            "steps": each.replayed.steps,
            "alerts": [as_json(change) for change in each.replayed.fired],
            "decisions": [as_json(decision) for decision in each.replayed.decisions],
            "same_as_live": each.same,
        }
        for each in compared
    ]
    print(json.dumps({"run": path, "own_rules": own_rules, "attempts": attempts}, indent=2))


_FORMATS = {"text": _text, "json": _json}
