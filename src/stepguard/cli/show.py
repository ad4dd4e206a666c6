"""`stepguard show`: what happened in a recorded run, and the pictures of one attempt."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from stepguard.errors import RuleFileError, RunFileError, StepguardError
from stepguard.recover.shelf import is_written, resumable
from stepguard.report.palette import BAD, QUIET
from stepguard.report.pictures import DRAWN, Pictures, Track, track
from stepguard.report.recorded import attempt_summary, happenings, told_of
from stepguard.report.replay import recorded_rules
from stepguard.report.story import Chapter, Left, story
from stepguard.report.summary import AlertCount, AttemptSummary, Summary, count_alerts
from stepguard.report.timeline import Timeline
from stepguard.report.words import count, listing, thinned_words
from stepguard.series.runfile import DROPPED, AttemptRecord, Event, RunFile, find_run
from stepguard.signals import Layer

FINE = 0
_AT_MOST = 12
"""Layers that are drawn where none are asked for."""
_WIDTH = 120
"""Characters across an SVG or HTML page."""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("show", help="show a recorded run", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run file, or a folder: its newest run")
    parser.add_argument("--attempt", type=int, metavar="N", help="whose pictures to show; default: the last")
    parser.add_argument(
        "--layers", metavar="GLOB", help=f"default: {_AT_MOST} at most, those with alerts first"
    )
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a picture instead")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page instead")


def run(args: argparse.Namespace) -> int:
    """Show the run; StepguardError if it cannot be read, or has no such attempt or layer."""
    path = find_run(args.run)
    with RunFile(path) as recording:
        shown = _Run(recording).show(args.attempt, args.layers)
    if args.svg is None and args.html is None:
        _print(shown)
        return FINE
    page = Console(
        record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    page.print(shown)
    title = f"stepguard show {path.name}"
    if args.svg is not None:
        _write(args.svg, page.export_svg(title=title, clear=False))
    if args.html is not None:
        _write(args.html, page.export_html(clear=False))
    return FINE


def _print(shown: RenderableType) -> None:
    """Print it, in a terminal from the top, since what happened comes first."""
    console = Console()
    if not console.is_terminal:
        console.print(shown)
        return
    os.environ.setdefault("LESS", "FRX")  # colours, and no waiting where all fits
    with console.pager(styles=True):
        console.print(shown)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StepguardError(f"{file}: cannot be written ({error.strerror})") from error
    print(f"written: {file}")


class _Run:
    """A recorded run with what happened in each of its attempts."""

    def __init__(self, recording: RunFile) -> None:
        self._recording = recording
        self._attempts = {record.number: record for record in recording.attempts()}
        self._happened = {
            number: happenings((event.kind, event.data) for event in recording.events(number))
            for number in self._attempts
        }

    def show(self, attempt: int | None, layers: str | None) -> RenderableType:
        """What happened in all attempts, and the pictures of one."""
        if not self._attempts:
            return Text(f"{self._recording.path}: nothing was recorded yet")
        record = self._attempts.get(max(self._attempts) if attempt is None else attempt)
        if record is None:
            raise StepguardError(f"no attempt {attempt}: the run has {listing(self._numbers(), _AT_MOST)}")
        summaries = tuple(self._summary(each) for each in self._attempts.values())
        alerts = count_alerts(self._happened[record.number].changes)
        places = _chosen(record.layers, layers, alerts)
        drawn = self._recording.blocks(record.number, DRAWN, hist=True)
        found = track(drawn, record.layers, places)
        parts: list[RenderableType] = [
            Text("\n".join(self._story(summaries)) + "\n"),
            Summary(summaries, str(self._recording.path)),
            self._heading(record),
        ]
        if found.steps.size:
            parts.append(self._timeline(record.number, found))
        parts += [*self._missing(record.number), "", Pictures(found, alerts)]
        if not layers and len(places) < len(record.layers):
            rest = count(len(record.layers) - len(places), "more layer")
            parts.append(Text(f"\n... and {rest}: --layers GLOB", style=QUIET))
        return Group(*parts)

    def _numbers(self) -> list[str]:
        return [str(number) for number in self._attempts]

    def _story(self, summaries: Sequence[AttemptSummary]) -> Iterator[str]:
        advice: dict[str, Sequence[str]] = {}
        for record in self._attempts.values():
            with suppress(
                RunFileError, RuleFileError
            ):  # a recording without its rules has a story all the same
                advice |= {rule.name: rule.advice for rule in recorded_rules(self._recording, record)}
        path = self._recording.path
        chapters = [Chapter(each, self._events(each.number)) for each in summaries]
        kept = next((shelf.step for shelf in resumable(path, summaries[-1].number)), None)
        return story(chapters, advice, Left(str(path), kept, is_written(path)))

    def _events(self, number: int) -> list[Event]:
        """All events, also how an attempt went on where it was broken off again before a newer snapshot."""
        return [*self._recording.events(-number, "resumed"), *self._recording.events(number)]

    def _summary(self, record: AttemptRecord) -> AttemptSummary:
        blocks = self._recording.blocks(record.number, told_of(self._recording.signals()))
        happened = self._happened[record.number]
        return attempt_summary(record.number, record.info, record.outcome or "", blocks, happened)

    def _heading(self, record: AttemptRecord) -> Text:
        others = [number for number in self._numbers() if number != str(record.number)]
        hint = f"  (others: --attempt {' or '.join(others)})" if others else ""
        return Text.assemble("\n", (f"attempt {record.number}", "bold"), (hint, QUIET), "\n")

    def _missing(self, number: int) -> list[RenderableType]:
        """How many frames the disk was too slow for, and how many the file's limit cost their layers."""
        missing = sum(int(event.data["frames"]) for event in self._recording.events(number, DROPPED))
        told = [f"{count(missing, 'frame')} missing from the recording"] if missing else []
        thin = self._recording.thinned(number)
        if thin is not None:
            told.append(f"thinned: {thinned_words(thin)}")
        return [Text(line, style=BAD) for line in told]

    def _timeline(self, number: int, found: Track) -> Timeline:
        happened = self._happened[number]
        steps = int(found.steps[0]), int(found.steps[-1])
        return Timeline(steps, happened.changes, happened.decisions)


def _chosen(layers: Sequence[Layer], glob: str | None, alerts: Sequence[AlertCount]) -> list[int]:
    """The places of the layers to draw, in depth order."""
    if glob is not None:
        found = [i for i, layer in enumerate(layers) if fnmatchcase(layer.name, glob)]
        if not found:
            names = listing([layer.name for layer in layers], _AT_MOST)
            raise StepguardError(f"no layer matches {glob!r}: the run has {names or 'none'}")
        return found
    alarmed = {name for alert in alerts for name in alert.layers}
    order = sorted(range(len(layers)), key=lambda i: layers[i].name not in alarmed)
    return sorted(order[:_AT_MOST])
