"""What watching costs: the time of a step watched over that of the same step bare.

All watchers of a workload run in one process, block by block in turn, so that whatever else the machine does
meets all alike; a ratio is that of two neighbouring blocks of ten steps. Printed are the median over all
pairs and the middle half of them.

    python tests/bench/cost.py [--seconds 60] [--workloads lecture mlp] [--json cost.json]
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from watchers import Take, available
from workloads import WORKLOADS, Training

BLOCK = 10
WARM_UP = 2


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Time all watchers on one workload for about so many seconds."""
    with ExitStack() as stack:
        runners: dict[str, tuple[Training, Take | None]] = {}
        for watcher, attach in available().items():
            torch.manual_seed(0)
            training = WORKLOADS[name]()
            runners[watcher] = training, stack.enter_context(attach(training))
        times: dict[str, list[float]] = {watcher: [] for watcher in runners}
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(times["bare"]) < WARM_UP + 3:
            for watcher, (training, take) in runners.items():
                started = time.perf_counter()
                for _ in range(BLOCK):
                    training.step(take)
                times[watcher].append((time.perf_counter() - started) / BLOCK)
    return _digest({watcher: np.array(blocks[WARM_UP:]) for watcher, blocks in times.items()})


def _digest(times: dict[str, np.ndarray]) -> dict[str, Any]:
    ratios = {watcher: blocks / times["bare"] for watcher, blocks in times.items() if watcher != "bare"}
    return {
        "step_ms": float(np.median(times["bare"]) * 1e3),
        "pairs": len(times["bare"]),
        "ratios": {
            watcher: dict(
                zip(("low", "median", "high"), np.quantile(found, (0.25, 0.5, 0.75)).tolist(), strict=True)
            )
            for watcher, found in ratios.items()
        },
    }


def show(results: dict[str, Any]) -> Table:
    """The table of a run: a row a watcher, a column a workload."""
    heads = [f"{name}\n{found['step_ms']:.0f} ms, {found['pairs']} pairs" for name, found in results.items()]
    table = Table("watcher", *heads, title="step time watched / bare: median (middle half)")
    for watcher in dict.fromkeys(w for found in results.values() for w in found["ratios"]):
        cells = [found["ratios"].get(watcher) for found in results.values()]
        table.add_row(
            watcher,
            *("" if c is None else f"{c['median']:.3f} ({c['low']:.2f}..{c['high']:.2f})" for c in cells),
        )
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="for each workload (default: 60)")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(2)
    console = Console(stderr=True)
    results = {
        name: measure(name, args.seconds) for name in track(args.workloads, "measuring", console=console)
    }
    Console(width=160).print(show(results))
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
