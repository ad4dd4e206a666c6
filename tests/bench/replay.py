"""How fast a recorded run is replayed, in how much memory: `python tests/bench/replay.py --steps 1000000`.

Flow: a run of random frames is written as a guard with `every="auto"` writes it, histograms included, into a
temporary file or into one that is kept; then it is replayed. Times are those of the processor.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from evaluation import TYPES, frames

from stepguard.report.replay import replay
from stepguard.rules.packs import load_rules
from stepguard.series.runfile import RunFile, RunWriter
from stepguard.signals import HIST_BINS, Frame, Layer

_WAIT = 200
"""Frames after which the writer is waited for: a training gives it time, this program does not."""
_SAID = 100_000
"""Steps between two lines of progress."""


def with_hist(layers: int, steps: int) -> Iterator[Frame]:
    """The frames, those with all signals with histograms like those of a normal distribution."""
    random = np.random.default_rng(1)
    typical = 4096 * np.exp(-(np.arange(HIST_BINS + 1) ** 2) / 50) / 6.8
    for frame in frames(layers, range(steps)):
        if len(frame.vectors) > 1:
            frame.hist = random.poisson(typical, (layers, HIST_BINS + 1)).astype(np.int32)
        yield frame


def write(path: Path, layers: int, steps: int, total: int | None) -> None:
    """Write the run."""
    writer = RunWriter(path)
    info = {"dry_run": False, "restarts": {}, "seed": 0, "lr_scale": 1.0, "init": None, "clip": None}
    writer.begin_attempt(1, {**info, "total_steps": total})
    writer.layers([Layer(f"block{place}", TYPES[place % len(TYPES)]) for place in range(layers)])
    for frame in with_hist(layers, steps):
        writer.frame(frame)
        if frame.step % _WAIT == 0:
            writer.flush()
        if frame.step % _SAID == 0 and frame.step:
            print(f"{frame.step:,} frames written", flush=True)
    writer.end_attempt("completed")
    writer.close()


def measure(path: Path, pack: str) -> None:
    """Replay it and print what that took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RunFile(path) as run:
        (record,) = run.attempts()
        began = time.process_time()
        done = replay(run, record, load_rules(pack))
        took = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{done.steps:,} frames of {len(record.layers)} layers, {path.stat().st_size / 1e6:,.0f} MB: replayed"
        f" in {took:,.1f} s, {done.steps / took:,.0f} frames a second, {len(done.fired)} alerts;"
        f" memory at most {peak / 1024:,.0f} MB, {before / 1024:,.0f} MB before"
    )


def main() -> None:
    """Write, unless it is there, and replay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="default")
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--total", action="store_true", help="the run says its length beforehand")
    parser.add_argument("--file", type=Path, help="where the run is kept; one that is there is replayed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path: Path = args.file or Path(folder) / "run.sqlite"
        if not path.exists():
            write(path, args.layers, args.steps, args.steps if args.total else None)
        measure(path, args.pack)


if __name__ == "__main__":
    main()
