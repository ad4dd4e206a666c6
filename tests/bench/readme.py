"""Put the figures of a benchmark into the README, between the marks that name it.

    python tests/bench/cost.py --json cost.json && python tests/bench/readme.py cost cost.json
    python tests/bench/scale.py --json scale.json && python tests/bench/readme.py scale scale.json
    python tests/arena && python tests/bench/readme.py arena runs/arena/figures.json
    python tests/arena/rescue.py && python tests/bench/readme.py rescue runs/arena/rescue.json

What stands between `<!-- cost -->` and `<!-- /cost -->` is written anew; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from curves import by_function, slopes
from scipy.stats import binomtest

README = Path(__file__).parents[2] / "README.md"


def cost(results: Mapping[str, Any]) -> str:
    """The table of `cost.py`: a row a watcher, a column a workload; and what it was measured with."""
    workloads = results["workloads"]
    watchers = dict.fromkeys(watcher for found in workloads.values() for watcher in found["watchers"])
    heads = [f"{name} ({found['step_ms']:.1f} ms)" for name, found in workloads.items()]
    rows = [
        [watcher, *(_ratio(found["watchers"].get(watcher)) for found in workloads.values())]
        for watcher in watchers
    ]
    machine = results["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
    about = (
        f"Median of the pairs, in brackets 10 % to 90 % of them, and how many there are. {machine['threads']}"
        f" threads of torch, Python {machine['python']}, {versions}."
    )
    return f"{_table(['watcher', *heads], rows)}\n\n{about}"


def scale(results: Mapping[str, Any]) -> str:
    """The tables of `scale.py`: what grows, memory, and the run file."""
    long_run = f"steps recorded, {results['long run']['layers']} layers: rules and run file alone"
    series = {
        "layers, all signals": results["layers"],
        "parameters, all signals": results["parameters"],
        long_run: results["steps"],
    }
    series |= {f"window: {name}": rows for name, rows in by_function(results["windows"]).items()}
    grows = [
        [what, "; ".join(f"{row['n']:,}: {_ms(row['ms'])}" for row in rows), slopes(rows)]
        for what, rows in series.items()
    ]
    memory = [
        [row["training"], *(f"{row[key] / 1e6:,.1f} MB" for key in ("model", "guard", "allowed"))]
        for row in results["memory"]
    ]
    return "\n\n".join(
        (
            _table(["what grows", "milliseconds a step", "slope"], grows),
            _table(["training", "its model", "the guard", "meant to take at most"], memory),
            *(_run_file(results[part]) for part in ("run file", "long run")),
        )
    )


def _ms(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _run_file(found: Mapping[str, Any]) -> str:
    cadence = "" if found["sampled"] == found["steps"] else f", {found['sampled']:,} of them sampled,"
    return (
        f"A run file of {found['steps']:,} steps{cadence} and {found['layers']} layers takes"
        f" {found['bytes'] / 1e6:,.0f} MB: {found['bytes_a_layer']:.0f} bytes a layer and sampled step."
    )


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
    if found is None:
        return ""
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f}; {found['pairs']})"


TABLES: Mapping[str, Callable[[Any], str]] = {"cost": cost, "scale": scale, "arena": arena, "rescue": rescue}


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
