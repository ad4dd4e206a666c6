"""How the cost of watching grows: with layers, parameters, recorded steps and windows; memory; the run file.

Layers and parameters: milliseconds that a guarded step takes longer than a bare one, everything measured at
every step but snapshots; the two take turns, the median of nine is taken. Steps: what rules and run file take
a step, so far into a run. Windows: what one rule takes at a step, by the length of its window. Memory: how
much higher the peak of a process is with the guard, snapshots aside. Run file: bytes on disk. The slopes are
those of a straight line through the logarithms, all of them and the last two: 1 is linear, 0 constant.

    python tests/bench/scale.py [--parts layers windows] [--json scale.json] [--svg scale.svg] [--size 0.01]

All of it takes about a quarter of an hour, most of it the million steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import footprint
import numpy as np
import recorded
from curves import Panel, Row, by_function, draw, slopes
from pairs import pairs
from rich.console import Console
from rich.table import Table
from watchers import Watcher
from workloads import side_by_side

from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Recovery
from stepguard.rules.packs import load_rules
from stepguard.signals import Frame, Layer, Vector

Rows = list[dict[str, Any]]
SECONDS = 3.0
"""For the pairs of one training."""
RULES: Mapping[str, str] = {
    "mean": "any(mean(act.std, {n}) > 1e9)",
    "median": "any(median(act.std, {n}) > 1e9)",
    "slope": "any(slope(act.std, {n}) > 1e9)",
    "zscore": "any(zscore(act.std, {n}) > 1e9)",
    "crash": "any(crash(act.std, rise=1000, fall=1000, within={n}))",
    "spike of the loss": "spike(loss, {n}, 1000)",
    "plateau of the loss": "plateau(loss, {n}, 0.001)",
}
"""By what it does: a condition that never holds."""
LENGTHS = {"layer": (10, 30, 100, 300, 1000), "run": (10, 100, 1000, 10_000)}
"""Steps of the windows, for a signal per layer and one of the run."""
WINDOW_LAYERS = 100
WINDOW_STEPS = 50
"""Steps that are timed, once the window is full."""


def layers(size: float) -> Rows:
    """By number of layers, of 8 units each."""
    counts = _up_to((10, 100, 1000, 10_000), 10_000 * size)
    return [{"n": count, **_cost(lambda count=count: side_by_side(count, 8), size)} for count in counts]


def parameters(size: float) -> Rows:
    """By number of parameters, in ten square layers."""
    counts = _up_to((10**4, 10**5, 10**6, 10**7, 10**8), 1e8 * size)
    return [
        {"n": count, **_cost(lambda count=count: side_by_side(10, round((count / 10) ** 0.5)), size)}
        for count in counts
    ]


def _cost(make: Callable[[], Any], size: float) -> dict[str, float]:
    """Milliseconds of a bare step, and by how much a guarded one takes longer."""
    found = pairs(make, Watcher(footprint.without_snapshots), SECONDS * min(100 * size, 1), threads=1)
    bare, watched = 1e3 * np.array(found).T
    return {"bare_ms": float(np.median(bare)), "ms": float(np.median(watched - bare))}


def windows(size: float) -> Rows:
    """By length of the window of one rule, evaluated at every step."""
    return [
        {"function": name, "n": n, "ms": _evaluation(condition.format(n=n), n)}
        for name, condition in RULES.items()
        for n in _up_to(LENGTHS["layer" if "act." in condition else "run"], 1e4 * size)
    ]


def _evaluation(condition: str, n: int) -> float:
    """Milliseconds that a rule takes at a step, once its window is full."""
    text = f"version: 1\nrules:\n  - name: timed\n    when: {condition}\n    action: warn\n"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text(text, encoding="utf-8")
        rules = load_rules(file)
    watched = [Layer(f"layer{place}", "Linear") for place in range(WINDOW_LAYERS)]
    recovery = Recovery(Engine(rules, watched), Attempt())
    times: list[float] = []
    for frame in _random_frames(n + WINDOW_STEPS):
        began = time.perf_counter()
        recovery.observe(frame)
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[-WINDOW_STEPS:]))


def _random_frames(steps: int) -> Iterator[Frame]:
    random, known = np.random.default_rng(0), np.ones(WINDOW_LAYERS, np.bool_)
    for step in range(steps):
        std = random.lognormal(0, 0.05, WINDOW_LAYERS).astype(np.float32)
        yield Frame(
            step, {"loss": float(2 - step / 1e3 + random.normal(0, 0.05))}, {"act.std": Vector(std, known)}
        )


def steps(size: float) -> tuple[Rows, dict[str, Any]]:
    """By recorded steps, of 100 layers, with what the file takes in the end."""
    marks = _up_to((100, 1000, 10_000, 100_000, 1_000_000), 1e6 * size)
    return recorded.long_run(_recorded_layers(size), marks[-1], marks)


def run_file(size: float) -> dict[str, Any]:
    """What a layer takes at a step with all signals."""
    return recorded.bytes_of_a_layer(_recorded_layers(size), max(int(1000 * size), 20))


def _recorded_layers(size: float) -> int:
    return max(10, min(100, round(1e4 * size)))


def _up_to(counts: Sequence[int], most: float) -> list[int]:
    """Those counts that are small enough, two at least."""
    return [count for count in counts if count <= max(most, counts[1])]


def measure(parts: Sequence[str], size: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the parts; what they found by name."""
    found: dict[str, Any] = {}
    for part in parts:
        say(f"{part} ...")
        if part == "steps":
            found["steps"], found["long run"] = steps(size)
        else:
            found[part] = PARTS[part](size)
    return found


PARTS: Mapping[str, Callable[[float], Any]] = {
    "layers": layers,
    "parameters": parameters,
    "steps": steps,
    "windows": windows,
    "memory": footprint.memory,
    "run file": run_file,
}


def show(found: Mapping[str, Any]) -> Iterator[Table | str]:
    """What was found, part by part."""
    for part in ("layers", "parameters", "steps"):
        if part in found:
            yield _table(part, found[part])
    if "windows" in found:
        for name, rows in by_function(found["windows"]).items():
            yield _table(f"window of {name}", rows)
    if "memory" in found:
        table = Table("training", "model, MB", "guard, MB", "allowed, MB", title="memory")
        for row in found["memory"]:
            table.add_row(
                row["training"], *(f"{row[key] / 1e6:,.1f}" for key in ("model", "guard", "allowed"))
            )
        yield table
    for part in ("run file", "long run"):
        if part in found:
            row = found[part]
            yield (
                f"{part}: {row['steps']:,} steps, {row['layers']} layers: {row['bytes'] / 1e6:,.1f} MB,"
                f" {row['bytes_a_layer']:.1f} bytes a layer and sampled step"
            )


def _table(title: str, rows: Sequence[Row]) -> Table:
    keys = [key for key in rows[0] if key not in ("n", "function")]
    table = Table(title, *keys, title=f"{title}: slope {slopes(rows)}")
    for row in rows:
        table.add_row(f"{row['n']:,}", *(f"{row[key]:.4f}" for key in keys))
    return table


def panels(found: Mapping[str, Any]) -> Iterator[Panel]:
    """The pictures of what was found."""
    for part in ("layers", "parameters", "steps"):
        if part in found:
            yield Panel(part, {f"slope {slopes(found[part])}": [(r["n"], r["ms"]) for r in found[part]]})
    if "windows" in found:
        lines = by_function(found["windows"]).items()
        yield Panel(
            "steps of a window (slopes in the legend)",
            {f"{name}: {slopes(rows)}": [(r["n"], r["ms"]) for r in rows] for name, rows in lines},
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--size", type=float, default=1.0, help="of the largest case, as a share (default: 1)"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--svg", type=Path, help="draw them there")
    args = parser.parse_args()
    found = measure(args.parts, args.size, Console(stderr=True).print)
    console = Console(width=110)
    for part in show(found):
        console.print(part)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.svg is not None:
        args.svg.write_text(
            draw("milliseconds that the guard adds to a step", list(panels(found))), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
