"""What watching costs: the time of a step watched over that of the same step bare.

On each workload every watcher has a process of its own, and they take turns of about a quarter of a second,
or as many steps as the watcher's cycle has; between any two of them it is bare's turn. A pair is one turn
over the mean of the bare turns just before and after it: machines change their pace within seconds. Each
workload gets an equal share of the time that is left. A watcher that has used up its part of it sits out, but
not before it has three pairs, or one of a long turn; for those a workload may take half as long again.

    python tests/bench/cost.py [--minutes 9] [--workloads lecture mlp] [--json cost.json]

What is installed of torchmortem, wandb and lightning is measured as well (the extra `peers`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from turns import Runner, RunnerFailed, runners
from watchers import Watcher, available
from workloads import WORKLOADS

LEAST = 3
"""Pairs of every watcher; of one whose turns are LONG one is enough."""
LONG = 5.0
"""Seconds."""
GRACE = 1.5
"""How far a workload may exceed its time for them, as a factor."""
TURN = 0.25
"""Seconds of a turn: as long as the guard gathers what it writes."""


class Times:
    """Seconds a step: of bare by its turns, of watchers by the turn of bare before."""

    def __init__(self, runners: Mapping[str, Runner], watchers: Mapping[str, Watcher]) -> None:
        self._runners, self._watchers = dict(runners), watchers
        self.found: dict[str, dict[int, float]] = {name: {} for name in runners}

    def round(self, part: float, end: float) -> None:
        """Give a turn to all who have not used up their part of the time, in seconds; none after `end`."""
        for name in [name for name in self._runners if name != "bare"]:
            wanting = self._lacks(name) or self._runners[name].spent < part
            if wanting and time.perf_counter() < end:
                self._turn("bare", len(self.found["bare"]))
                self._turn(name, len(self.found["bare"]) - 1)

    def close(self) -> None:
        """Close the last pair."""
        self._turn("bare", len(self.found["bare"]))

    def _turn(self, name: str, number: int) -> None:
        runner, found = self._runners[name], self.found[name]
        cycle = self._watchers[name].cycle
        cycles = max(1, round(TURN / (min(found.values()) * cycle))) if found else 1
        try:
            found[number] = runner.turn(cycles * cycle)
        except RunnerFailed as fault:
            print(f"{name} has ended: {fault}")
            del self._runners[name]

    @property
    def enough(self) -> bool:
        """Whether every watcher has its pairs."""
        return not any(map(self._lacks, self._runners))

    def _lacks(self, name: str) -> bool:
        """Whether a watcher has too few pairs."""
        pairs = len(self.found[name])
        return pairs < (1 if self._runners[name].spent > LONG * pairs else LEAST)

    def digest(self) -> dict[str, Any]:
        """Milliseconds of a bare step, and of each watcher the ratios of its pairs."""
        bare = self.found.pop("bare")
        ratios = {
            name: [2 * seconds / (bare[i] + bare[i + 1]) for i, seconds in found.items() if i + 1 in bare]
            for name, found in self.found.items()
        }
        return {
            "step_ms": 1e3 * float(np.median(list(bare.values()))),
            "watchers": {name: _spread(found) for name, found in ratios.items() if found},
        }


def _spread(ratios: list[float]) -> dict[str, Any]:
    low, median, high = np.quantile(ratios, (0.1, 0.5, 0.9)).tolist()
    return {"median": median, "low": low, "high": high, "pairs": len(ratios), "ratios": ratios}


def measure(workload: str, watchers: dict[str, Watcher], seconds: float, threads: int) -> dict[str, Any]:
    """Time all watchers on one workload, setting up included."""
    began = time.perf_counter()
    deadline, end = began + seconds, began + GRACE * seconds
    with runners(WORKLOADS[workload], watchers, threads) as running:
        times = Times(running, watchers)
        part = (deadline - time.perf_counter()) / (2 * len(running))  # as much is bare's
        times.round(part, math.inf)
        while time.perf_counter() < (deadline if times.enough else end):
            times.round(part, end)
        times.close()
    return times.digest()


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
    parser.add_argument("--minutes", type=float, default=9, help="for all workloads together (default: 9)")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--watchers", nargs="+", choices=available(), default=list(available()))
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    watchers = {name: available()[name] for name in dict.fromkeys(("bare", *args.watchers))}
    for watcher in watchers.values():
        if watcher.package is not None:
            importlib.import_module(watcher.package)  # once, before the processes are forked
    deadline, console = time.perf_counter() + 60 * args.minutes, Console(stderr=True)
    found: dict[str, Any] = {}
    # The slow ones, which are the last, come first: should one need more than its share, the others give it.
    for left, name in reversed(list(enumerate(args.workloads, 1))):
        console.print(f"{name} ...")
        found[name] = measure(name, watchers, (deadline - time.perf_counter()) / left, args.threads)
    results = {
        "machine": machine(args.threads),
        "workloads": {name: found[name] for name in args.workloads},
    }
    Console(width=40 + 26 * len(found)).print(show(results))
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
