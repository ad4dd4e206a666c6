"""`stepguard show`: what happened in a recorded run, and the pictures of one attempt."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from stepguard.errors import StepguardError
from stepguard.report.palette import QUIET
from stepguard.report.pictures import Pictures, track
from stepguard.report.recorded import AttemptEvents, read_events, summarise
from stepguard.report.summary import AlertCount, Summary
from stepguard.report.timeline import Timeline
from stepguard.series.runfile import RunFile, find_run
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
    parser.add_argument("--attempt", type=int, metavar="N", help="default: the last")
    parser.add_argument("--layers", metavar="GLOB", help=f"default: {_AT_MOST} at most, those with alerts first")
    parser.add_argument("--svg", metavar="FILE", help="write a picture instead")
    parser.add_argument("--html", metavar="FILE", help="write a page instead")
    parser.set_defaults(run_command=run)


def run(args: argparse.Namespace) -> int:
    """Show the run. StepguardError if it cannot be read, or has no such attempt or layer."""
    path = find_run(args.run)
    with RunFile(path) as recording:
        shown = _whole(recording, path, args.attempt, args.layers)
    files = {name: Path(file) for name in ("svg", "html") if (file := getattr(args, name))}
    if not files:
        Console().print(shown)
    for name, file in files.items():
        _export(shown, name, file, path.name)
        print(f"written: {file}")
    return FINE
