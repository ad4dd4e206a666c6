"""What watching costs: the time of a step watched over that of the same step bare.

On each workload every watcher has a process of its own, in which the watched training and a bare one like it
take step by step in turn (see `pairs`). A pair is a tenth of a second of them or more, and as many steps as
the watcher's cycle has. All get an even share of the time; where pairs are long, more, and where a single one
would take a tenth of all the time and more than ten seconds, the watcher is left out there. "nobody" is bare
against bare.

    python tests/bench/cost.py [--minutes 5] [--workloads lecture mlp] [--json cost.json]

What is installed of torchmortem, wandb and lightning is measured as well (the extra `peers`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pairs import LONG, Pair, PairsFailed, pairs
from rich.console import Console
from rich.table import Table
from watchers import available
from workloads import WORKLOADS

LONGEST = 0.1
"""Share of all the time that a pair may take, at most."""


def measure(
    cells: Sequence[tuple[str, str]], minutes: float, threads: int
) -> dict[tuple[str, str], list[Pair]]:
    """Pairs of each workload with a watcher."""
    end, found = time.perf_counter() + 60 * minutes, dict[tuple[str, str], list[Pair]]()
    console = Console(stderr=True)
    # Long cycles, whose pairs may take more than their share, come first: the others give it.
    ordered = sorted(cells, key=lambda cell: available()[cell[1]].cycle)
    for left, (workload, watcher) in reversed(list(enumerate(ordered, 1))):
        console.print(f"{workload}: {watcher} ...")
        share = max(end - time.perf_counter(), 0) / left
        make, watching = WORKLOADS[workload], available()[watcher]
        longest = max(LONG, 60 * minutes * LONGEST)
        try:
            found[workload, watcher] = pairs(make, watching, share, threads, longest)
        except PairsFailed as fault:
            console.print(f"{watcher} is left out on {workload}: {fault}")
    return found


def digest(found: Mapping[tuple[str, str], list[Pair]]) -> dict[str, Any]:
    """Of each workload milliseconds of a bare step, and of each watcher the ratios of its pairs."""
    digested: dict[str, Any] = {}
    for (workload, watcher), timed in found.items():
        of_workload = digested.setdefault(workload, {"bare_ms": [], "watchers": {}})
        of_workload["bare_ms"] += [1e3 * pair.bare for pair in timed]
        of_workload["watchers"][watcher] = _spread([pair.watched / pair.bare for pair in timed])
    for of_workload in digested.values():
        of_workload["step_ms"] = float(np.median(of_workload.pop("bare_ms")))
    return digested


def _spread(ratios: list[float]) -> dict[str, Any]:
    low, median, high = np.quantile(ratios, (0.1, 0.5, 0.9)).tolist()
    return {"median": median, "low": low, "high": high, "pairs": len(ratios), "ratios": ratios}


def machine(threads: int) -> dict[str, Any]:
    """Where it was measured, and with which versions."""
    packages = ("torch", *(watcher.package for watcher in available().values() if watcher.package))
    return {
        "processor": platform.machine(),
        "python": platform.python_version(),
        "threads": threads,
        "packages": {package: importlib.metadata.version(package) for package in packages},
    }


def show(results: Mapping[str, Any]) -> Table:
    """The table of a run: a row a watcher, a column a workload."""
    found = results["workloads"]
    heads = [f"{name}\n{each['step_ms']:.1f} ms" for name, each in found.items()]
    table = Table("watcher", *heads, title="step time watched / bare: median (10 % to 90 %) pairs")
    for watcher in dict.fromkeys(name for each in found.values() for name in each["watchers"]):
        table.add_row(watcher, *(_cell(each["watchers"].get(watcher)) for each in found.values()))
    return table


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['median']:.3f} ({found['low']:.2f}..{found['high']:.2f}) {found['pairs']}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=5,
        help="for all workloads together, and more where pairs are long (default: 5)",
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--watchers", nargs="+", choices=available(), default=list(available()))
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    watchers = {name: available()[name] for name in args.watchers}
    for watcher in watchers.values():
        if watcher.package is not None:
            importlib.import_module(watcher.package)  # once, before the processes are forked
    cells = [(workload, watcher) for workload in args.workloads for watcher in watchers]
    found = measure(cells, args.minutes, args.threads)
    results = {
        "machine": machine(args.threads),
        "workloads": digest({cell: found[cell] for cell in cells if cell in found}),
    }
    Console(width=40 + 26 * len(args.workloads)).print(show(results))
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
