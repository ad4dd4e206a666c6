"""A run of many steps, as `every="auto"` records it: what its file takes, and what a step costs at its end.

Flow: in come the frames of a real training of layers that have every signal, over and over; each goes through
the rules and into a run file, as those of a live guard do; out come milliseconds a step and bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stepguard
from stepguard.collect.cadence import Cadence
from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Recovery
from stepguard.report.recorder import Recorder
from stepguard.rules.packs import load_rules
from stepguard.series.runfile import RunFile, RunWriter, find_run
from stepguard.signals import Frame, Layer

REAL = 256
"""Steps of the real training at most."""
_BATCH = 128
"""Frames after which the disk is waited for, and seconds of writing are taken."""


class _Deep(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers // 2))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(layers // 2))

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(x + F.relu(linear(x)))
        return x


class Recording(NamedTuple):
    """What a real run left on disk."""

    layers: Sequence[Layer]
    frames: Sequence[Frame]
    bytes: int


def train(layers: int, steps: int, every: int) -> Recording:
    """Train for some steps, and read what the guard recorded; all signals at each `every`th step."""
    torch.manual_seed(0)
    model, (given, wanted) = _Deep(layers), torch.randn(2, 128, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with TemporaryDirectory() as folder:
        with stepguard.watch(
            model, optimizer, run=folder, every=every, console=None, dry_run=True, on_error="raise"
        ) as guard:
            for _ in range(steps):
                loss = F.mse_loss(model(given), wanted)
                optimizer.zero_grad()
                loss.backward()
                guard.step(loss)
        path = find_run(folder)
        with RunFile(path) as run:
            return Recording(run.attempts()[0].layers, list(run.frames(1)), path.stat().st_size)


def _endless(sampled: Sequence[Frame], others: Sequence[Frame]) -> Iterator[Frame]:
    """The frames there and back again, so that no reading jumps; all signals where "auto" wants them."""
    cadence, step = Cadence("auto"), 0
    there_and_back = [*range(len(sampled)), *range(len(sampled) - 2, 0, -1)]
    while True:
        for place in there_and_back:
            source = (sampled if cadence.measures(step, quiet=True) else others)[place]
            yield Frame(step, source.scalars, source.vectors, source.hist)
            step += 1


def long_run(
    layers: int, steps: int, marks: Sequence[int]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Record a run of so many steps; the cost of a step around each mark, and what the file takes."""
    real = train(layers, min(REAL, steps // 50), 1)
    others = [_unsampled(frame) for frame in real.frames]
    recovery = Recovery(Engine(load_rules("default"), real.layers), Attempt(), dry_run=True)
    with TemporaryDirectory() as folder:
        writer = RunWriter(Path(folder) / "run.sqlite")
        writer.begin_attempt(1, {})
        record, frames = Recorder(writer), _endless(real.frames, others)
        found: list[dict[str, float]] = []
        full = done = 0
        for mark in marks:
            times: list[tuple[float, float]] = []
            while done < mark:
                batch = [next(frames) for _ in range(min(_BATCH, mark - done))]
                times.append(_batch(batch, recovery, record, writer))
                full += sum(frame.hist is not None for frame in batch)
                done += len(batch)
            found.append(_cost(mark, times))
        writer.end_attempt("completed")
        writer.close()
        size = writer.path.stat().st_size
    about = {"layers": layers, "steps": done, "sampled": full, "bytes": size}
    return found, {**about, "bytes_a_layer": size / layers / full}


def _unsampled(frame: Frame) -> Frame:
    """What the guard has at a step that is not measured."""
    kept = {name: frame.scalars[name] for name in ("loss", "lr", "step_time") if name in frame.scalars}
    return Frame(frame.step, kept, {"grad.nonfinite": frame.vectors["grad.nonfinite"]})


def _batch(
    frames: Sequence[Frame], recovery: Recovery, record: Recorder, writer: RunWriter
) -> tuple[float, float]:
    """Seconds a step of judging and of writing."""
    began = time.perf_counter()
    seen = [recovery.observe(frame) for frame in frames]
    judged = time.perf_counter()
    for observation in seen:
        record(observation)
    writer.flush()
    return (judged - began) / len(frames), (time.perf_counter() - judged) / len(frames)


def _cost(mark: int, times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians of the last tenth of the way to a mark."""
    rules, file = 1e3 * np.median(times[-max(len(times) // 10, 3) :], axis=0)
    return {"n": mark, "rules_ms": float(rules), "file_ms": float(file), "ms": float(rules + file)}


def bytes_of_a_layer(layers: int, steps: int) -> dict[str, Any]:
    """What a layer takes in the run file at a sampled step, of a real run with all signals at every step."""
    found = train(layers, steps, 1)
    a_layer = found.bytes / len(found.layers) / steps
    size = {"bytes": found.bytes, "bytes_a_layer": a_layer}
    return {"layers": len(found.layers), "steps": steps, "sampled": steps, **size}
