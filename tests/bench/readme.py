"""Put the figures of a benchmark into the README, between the marks that name it.

    python tests/bench/cost.py --json cost.json && python tests/bench/readme.py cost cost.json

The table between `<!-- cost -->` and `<!-- /cost -->` is written anew from the JSON; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def cost(results: Mapping[str, Any]) -> str:
    """The table of `cost.py`: a row a watcher, a column a workload, medians and middle halves."""
    watchers = dict.fromkeys(watcher for found in results.values() for watcher in found["ratios"])
    heads = [f"{name} ({found['step_ms']:.0f} ms, {found['pairs']} pairs)" for name, found in results.items()]
    rows = [["watcher", *heads], ["---"] * (len(heads) + 1)]
    for watcher in watchers:
        rows.append([watcher, *(_ratio(found["ratios"].get(watcher)) for found in results.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ratio(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"cost": cost}


def main() -> None:
    """Write one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("json", type=Path, help="what the benchmark wrote")
    args = parser.parse_args()
    table = TABLES[args.table](json.loads(args.json.read_text(encoding="utf-8")))
    marks = re.compile(rf"(<!-- {args.table} -->\n).*?(<!-- /{args.table} -->)", re.DOTALL)
    text, count = marks.subn(
        lambda found: f"{found[1]}\n{table}\n\n{found[2]}", README.read_text(encoding="utf-8")
    )
    if count != 1:
        parser.error(f"{README}: expected one pair of marks <!-- {args.table} -->, found {count}")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
