"""`stepguard schema`: JSON Schema of rule files, by which an editor completes and checks them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from stepguard.rules.schema import rule_file_schema

FINE = 0


def add(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser("schema", help="JSON Schema of rule files, for editors", description=__doc__)


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(rule_file_schema(), indent=2))
    return FINE
