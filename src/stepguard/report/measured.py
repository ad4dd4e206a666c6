"""Figures measured of the shipped rules on trainings that went well and that failed, where there are any."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stepguard.rules.packs import pack_names, pack_path
from stepguard.rules.rule import Rule

FILE = "measured.json"
"""Beside the packs: by rule, its `condition` and how many `healthy_runs` and `failing_runs` it fired in."""
UNKNOWN = "not measured"


def measured(rule: Rule) -> str:
    """How often the rule fired; UNKNOWN where its condition is not the one that was measured."""
    found = figures(pack_path(pack_names()[0]).with_name(FILE)).get(rule.name)
    if found is None or " ".join(found["condition"].split()) != " ".join(rule.condition.text.split()):
        return UNKNOWN
    parts = [f"{found[f'{kind}_fired']} of {found[f'{kind}_runs']} {kind}" for kind in ("healthy", "failing")]
    return f"fired in {parts[0]} runs, in {parts[1]}"


@cache
def figures(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The figures of a file; none if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
