"""`stepguard test`: rule tests, and for those that fail the alerts that differ and the series, drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stepguard.engine import Engine
from stepguard.errors import RuleFileError
from stepguard.rules.diff import diff
from stepguard.rules.testing import Outcome, run_file
from stepguard.rules.wording import plural

FINE, FINDINGS, UNREADABLE = 0, 1, 2


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("test", help="run rule tests", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a file of rule tests")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all tests of the files, print those that fail, and return the exit code."""
    outcomes: list[Outcome] = []
    readable = True
    for file in args.files:
        try:
            outcomes += run_file(file, Engine)
        except RuleFileError as error:
            readable = False
            print(error)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(diff(outcome))
    if outcomes:
        print(f"{plural(len(outcomes), 'test')}: {f'{len(failed)} failed' if failed else 'all passed'}")
    if not readable:
        return UNREADABLE
    return FINDINGS if failed else FINE
