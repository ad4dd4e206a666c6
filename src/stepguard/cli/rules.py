"""`stepguard rules`: the packs and their rules, or the rules of files, in a table."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepguard.cli.explain import of_files, shipped
from stepguard.report.measured import measured
from stepguard.report.palette import SEVERITY
from stepguard.rules.rule import Rule

FINE = 0
_WIDEST = 60
"""Characters of a condition; `stepguard explain` tells the rest."""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("rules", help="list packs and their rules", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="rule files or packs; default: every pack")


def run(args: argparse.Namespace) -> int:
    """Print the table; RuleFileError with the faults of the files."""
    table = Table("pack", "rule", "severity", "action", "condition", "measured")
    before = None
    for each in of_files(args.files) if args.files else shipped():
        source = each.pack or each.rule.place.file
        if before not in (None, source):
            table.add_section()
        table.add_row("" if source == before else source, each.rule.name, *_cells(each.rule))
        before = source
    Console().print(table)
    return FINE


def _cells(rule: Rule) -> tuple[Text, str, Text, str]:
    kinds = [
        action.kind if action.times is None else f"{action.kind} x{action.times}" for action in rule.ladder
    ]
    condition = Text(" ".join(rule.condition.text.split()))
    condition.truncate(_WIDEST, overflow="ellipsis")
    return Text(rule.severity, style=SEVERITY[rule.severity]), ", ".join(kinds), condition, measured(rule)
