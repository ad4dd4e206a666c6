"""Put the figures of a benchmark into the README, between the marks that name it.

    python tests/bench/cost.py --json cost.json && python tests/bench/readme.py cost cost.json
    python tests/arena && python tests/bench/readme.py arena runs/arena/figures.json
    python tests/arena/rescue.py && python tests/bench/readme.py rescue runs/arena/rescue.json

The table between `<!-- cost -->` and `<!-- /cost -->` is written anew from the JSON; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

README = Path(__file__).parents[2] / "README.md"


def cost(results: Mapping[str, Any]) -> str:
    """The table of `cost.py`: a row a watcher, a column a workload, medians and middle halves."""
    watchers = dict.fromkeys(watcher for found in results.values() for watcher in found["ratios"])
    heads = [f"{name} ({found['step_ms']:.0f} ms, {found['pairs']} pairs)" for name, found in results.items()]
    rows = [
        [watcher, *(_ratio(found["ratios"].get(watcher)) for found in results.values())]
        for watcher in watchers
    ]
    return _table(["watcher", *heads], rows)


def arena(results: Mapping[str, Any]) -> str:
    """The table of `tests/arena`: the default pack by kinds of families, and the baselines over all."""
    rows = [
        [
            f"stepguard, {kind} families",
            _share(found["stopped"]),
            _share(found["false_stops"]),
            f"{found['budget']:.0%}",
        ]
        for kind, found in results["pack"].items()
    ]
    for name, found in results["baselines"].items():
        budget = f"{found['budget']:.0%}" if "budget" in found else ""
        rows.append(
            [name.removeprefix("baseline-"), _share(found["failing"]), _share(found["healthy"]), budget]
        )
    return _table(["watcher", "failing runs stopped", "healthy runs stopped", "budget used"], rows)


def rescue(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of `tests/arena/rescue.py`: of the failing runs those that ended healthy, by strategy."""
    rows: list[list[str]] = []
    for strategy in dict.fromkeys(found["strategy"] for found in results):
        mine = [found for found in results if found["strategy"] == strategy]
        rows.append([strategy, _share({"hits": sum(found["saved"] for found in mine), "of": len(mine)})])
    return _table(["what a restart changes", "failing runs that ended healthy"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _share(found: Mapping[str, Any]) -> str:
    interval = binomtest(found["hits"], found["of"]).proportion_ci(method="exact")
    share = f"{found['hits']} of {found['of']} = {found['hits'] / found['of']:.1%}"
    return f"{share} ({interval.low:.1%} to {interval.high:.1%})"


def _ratio(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


TABLES: Mapping[str, Callable[[Any], str]] = {"cost": cost, "arena": arena, "rescue": rescue}


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
