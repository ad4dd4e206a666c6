"""Records bare runs, each scenario and seed once, in worker processes: all signals and the outcome.

Flow: a scenario is trained with a guard that only looks (`dry_run`), its frames go into one compressed file,
its outcome into `outcomes.jsonl`. What is there already is not run again.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arena import catalog
from arena.crashes import crashes
from arena.training import Scenario
from stepguard.recover.recovery import Observation
from stepguard.series.blocks import Block, Column
from stepguard.signals import Frame, Layer, Vector

FOLDER = Path(__file__).parents[2] / "runs" / "arena"


@dataclass(frozen=True)
class Outcome:
    """How a bare run ended."""

    scenario: str
    family: str
    intent: str
    seed: int
    steps: int
    raw: float
    """The score as it was measured."""
    crash: int | None
    """The step at which the lecture's rising crash was complete."""
    seconds: float
    """Of the processor: what else the machine does makes no run dearer."""

    @property
    def score(self) -> float:
        """Normalised: 0 is chance, 1 the reference, -1 not finite."""
        return catalog.SCENARIOS[self.scenario].normalised(self.raw)

    @property
    def label(self) -> str:
        """`failing`, `healthy`, or `between`, by the outcome alone."""
        return "failing" if self.score < 0.5 else "healthy" if self.score > 0.8 else "between"

    def line(self) -> str:
        """It as a line of the log."""
        crash = "" if self.crash is None else f"crash {self.crash}"
        return (
            f"{self.scenario:42} {self.seed} {self.intent:8} {self.score:6.2f} {self.label:8}"
            f" {self.steps:5} steps {self.seconds:5.1f} s {crash}"
        )


@dataclass
class Recording:
    """The frames of one run, without histograms."""

    layers: tuple[Layer, ...]
    frames: list[Frame]

    def save(self, path: Path) -> None:
        """Write them stacked, one array a signal."""
        arrays: dict[str, Any] = {"layers": np.array(json.dumps(self.layers))}
        arrays["steps"] = np.array([frame.step for frame in self.frames])
        for name in {name for frame in self.frames for name in frame.scalars}:
            arrays[f"s:{name}"] = np.array([f.scalars.get(name, np.nan) for f in self.frames])
            arrays[f"t:{name}"] = np.array([name in f.scalars for f in self.frames])
        empty = np.zeros(len(self.layers))
        nothing = Vector(empty.astype(np.float32), empty.astype(np.bool_))
        for name in {name for frame in self.frames for name in frame.vectors}:
            vectors = [frame.vectors.get(name, nothing) for frame in self.frames]
            arrays[f"v:{name}"] = np.stack([vector.values for vector in vectors])
            arrays[f"k:{name}"] = np.stack([vector.known for vector in vectors])
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read them back."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        layers = tuple(Layer(*pair) for pair in json.loads(str(arrays.pop("layers"))))
        frames = [Frame(int(step)) for step in arrays.pop("steps")]
        for key, array in arrays.items():
            kind, name = key.split(":", 1)
            if kind == "s":
                for frame, value, there in zip(frames, array, arrays[f"t:{name}"], strict=True):
                    if there:
                        frame.scalars[name] = float(value)
            elif kind == "v":
                for frame, values, known in zip(frames, array, arrays[f"k:{name}"], strict=True):
                    if known.any():
                        frame.vectors[name] = Vector(values, known)
        return cls(layers, frames)

    def block(self, signals: Collection[str], view: Callable[[Frame], Frame] | None = None) -> Block:
        """Some signals of all frames, or of what a view makes of these, side by side."""
        frames = self.frames if view is None else [view(frame) for frame in self.frames]
        scalars = {name for frame in frames for name in frame.scalars if name in signals}
        vectors = {name for frame in frames for name in frame.vectors if name in signals}
        nothing = Vector(np.full(len(self.layers), np.nan, np.float32), np.zeros(len(self.layers), np.bool_))
        return Block(
            np.array([frame.step for frame in frames], np.int64),
            {name: _column([frame.scalars.get(name) for frame in frames]) for name in scalars},
            {name: _columns([frame.vectors.get(name) for frame in frames], nothing) for name in vectors},
            None,
            np.zeros(len(frames), np.bool_),
        )


def _column(values: Sequence[float | None]) -> Column:
    there = np.array([value is not None for value in values])
    return Column(np.array([np.nan if value is None else value for value in values]), there, there)


def _columns(vectors: Sequence[Vector | None], nothing: Vector) -> Column:
    values, known = zip(*(vector or nothing for vector in vectors), strict=True)
    return Column(np.stack(values), np.stack(known), np.array([vector is not None for vector in vectors]))


def path_of(folder: Path, scenario: str, seed: int) -> Path:
    """Where a run's frames lie."""
    return folder / f"{scenario.replace('/', '--')}.{seed}.npz"


def run_bare(scenario: Scenario, seed: int, every: int = 1) -> tuple[Recording, float]:
    """Train it unguarded but seen; its frames and its score."""
    training = scenario.make(seed)
    recording = Recording((), [])

    def keep(seen: Observation) -> None:
        recording.layers = seen.layers
        frame = seen.frame
        recording.frames.append(Frame(frame.step, dict(frame.scalars), dict(frame.vectors)))

    with training.watch(
        rules="quiet", dry_run=True, every=every, run=None, console=None, subscribers=[keep], on_error="raise"
    ) as guard:
        training.run(guard)
    return recording, training.score()


def record(name: str, seed: int, folder: Path) -> Outcome:
    """Record one run, in a worker process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    scenario, began = catalog.SCENARIOS[name], time.process_time()
    recording, score = run_bare(scenario, seed)
    recording.save(path_of(folder, name, seed))
    seconds = time.process_time() - began
    steps = len(recording.frames)
    return Outcome(name, scenario.family, scenario.intent, seed, steps, score, crashes(recording), seconds)


def outcomes(folder: Path) -> dict[tuple[str, int], Outcome]:
    """The outcomes on disk; of several of one run the last."""
    path = folder / "outcomes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = (Outcome(**json.loads(line)) for line in lines)
    return {(o.scenario, o.seed): o for o in found if o.scenario in catalog.SCENARIOS}


def record_all(
    names: Sequence[str], seeds: Iterable[int], folder: Path, jobs: int = 2, again: bool = False
) -> None:
    """Record what is missing, in parallel; a fault in one run is said and leaves the others alone."""
    folder.mkdir(parents=True, exist_ok=True)
    there = outcomes(folder)
    todo = [(name, seed) for seed in seeds for name in names if again or (name, seed) not in there]
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        (folder / "outcomes.jsonl").open("a") as out,
    ):
        futures = {pool.submit(record, name, seed, folder): (name, seed) for name, seed in todo}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except Exception as fault:
                print(f"{futures[future]}: {type(fault).__name__}: {fault}", file=sys.stderr)
                continue
            out.write(json.dumps(asdict(outcome)) + "\n")
            out.flush()
            print(outcome.line(), flush=True)


def load(folder: Path) -> Iterator[tuple[Outcome, Recording]]:
    """All runs on disk with their frames."""
    for outcome in outcomes(folder).values():
        yield outcome, Recording.load(path_of(folder, outcome.scenario, outcome.seed))
