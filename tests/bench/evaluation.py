"""What rules cost at a step, by layers and by how far the run has gone: `python tests/bench/evaluation.py`.

Flow: in come random frames as a healthy training gives them; out comes a table of medians in microseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Recovery
from stepguard.rules.packs import load_rules
from stepguard.signals import SIGNALS, Frame, Layer, Vector

TYPES = ("Conv2d", "BatchNorm2d", "ReLU")
LATER = 10
"""From one frame with all signals to the next, as `every="auto"` has it."""
YOUNG = 200
"""Steps at which a run has all signals at every step."""


def frames(layers: int, steps: range) -> Iterator[Frame]:
    """All signals while young and at each `LATER`th step; loss, learning rate, a clean screen at others."""
    random = np.random.default_rng(0)
    names = [signal.name for signal in SIGNALS.values() if signal.per == "layer"]
    typical = random.uniform(0.2, 0.6, (len(names), layers)).astype(np.float32)
    typical[[name.endswith("nonfinite") for name in names]] = 0
    typical[names.index("update.ratio")] *= 1e-2
    known = np.ones(layers, np.bool_)
    clean = Vector(np.zeros(layers, np.float32), known)
    for step in steps:
        frame = Frame(step, {"loss": float(2 + 1 / (1 + step / 1000) + random.normal(0, 0.05)), "lr": 0.1})
        frame.vectors["grad.nonfinite"] = clean
        if step < YOUNG or step % LATER == 0:
            rows = typical * random.uniform(0.95, 1.05, typical.shape).astype(np.float32)
            frame.vectors = {name: Vector(row, known) for name, row in zip(names, rows, strict=True)}
            frame.scalars["grad_norm"] = float(random.uniform(0.9, 1.1))
        yield frame


def cost(pack: str, layers: int, begin: int, count: int) -> tuple[float, float]:
    """Medians of a step with all signals and of one with scalars, after a window's length of steps."""
    watched = [Layer(f"block{place}", TYPES[place % len(TYPES)]) for place in range(layers)]
    recovery = Recovery(Engine(load_rules(pack), watched), Attempt(number=1, seed=0))
    taken: tuple[list[float], list[float]] = [], []
    for frame in frames(layers, range(begin, begin + 400 + count)):
        start = time.perf_counter()
        recovery.observe(frame)
        if frame.step >= begin + 400:
            taken[len(frame.vectors) == 1].append(1e6 * (time.perf_counter() - start))
    return float(np.median(taken[0])), float(np.median(taken[1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="default")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1_000_000])
    parser.add_argument("--count", type=int, default=400, help="steps that are measured")
    args = parser.parse_args()
    table = Table("layers", "from step", "all signals, us", "scalars, us")
    for layers in args.layers:
        for begin in args.steps:
            row = cost(args.pack, layers, begin, args.count)
            table.add_row(f"{layers:,}", f"{begin:,}", *(f"{each:,.0f}" for each in row))
    Console().print(table)


if __name__ == "__main__":
    main()
