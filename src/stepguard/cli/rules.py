"""`stepguard rules`: the packs and their rules, or the rules of files, in a table."""

from __future__ import annotations

import argparse
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepguard.cli.explain import of_files, shipped
from stepguard.report.measured import measured
from stepguard.report.palette import SEVERITY
from stepguard.rules.rule import Action, Rule

FINE = 0
_ROOMY = 140
"""Columns of a terminal that is wide enough for the conditions."""
_WIDEST = 60
"""Characters of a condition; `stepguard explain` tells the rest."""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("rules", help="list packs and their rules", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="rule files or packs; default: every pack")


def run(args: argparse.Namespace) -> int:
    """Print the table; RuleFileError with the faults of the files."""
    console = Console()
    table = Table("rule", "severity", "action", box=SIMPLE_HEAD)
    if console.width >= _ROOMY:
        table.add_column("measured")
        table.add_column("condition")
    for column in table.columns:  # a name cut short can be given to no command
        column.no_wrap = column.header in ("rule", "severity", "condition")
    before = None
    for each in of_files(args.files) if args.files else shipped():
        source = each.pack or each.rule.place.file
        if source != before:
            table.add_section()
            table.add_row(Text(source, style="bold"))
        table.add_row(Padding(each.rule.name, (0, 0, 0, 2)), *_cells(each.rule)[: len(table.columns) - 1])
        before = source
    console.print(table)
    return FINE


def _often(action: Action) -> str:
    return action.kind if action.limit is None else f"{action.kind} x{action.limit}"


def _cells(rule: Rule) -> tuple[Text, str, str, Text]:
    kinds = [_often(action) for action in rule.ladder]
    condition = Text(" ".join(rule.condition.text.split()))
    condition.truncate(_WIDEST, overflow="ellipsis")
    return Text(rule.severity, style=SEVERITY[rule.severity]), ", ".join(kinds), measured(rule), condition
