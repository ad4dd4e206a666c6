"""The guard's memory: how much higher the peak of a process is with it, snapshots aside. Linux only."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import evaluation
import torch
from torch import nn
from watchers import Take
from workloads import Training, side_by_side

import stepguard
from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.keeper import NEVER
from stepguard.recover.recovery import Recovery
from stepguard.rules.packs import load_rules
from stepguard.signals import Layer

ALLOWED = (0.01, 100e6)
"""As a share of the model, and bytes on top."""
WARM_UP, STEPS = 3, 30
HISTORY = 4000
"""Steps after which every window of 1,000 layers that the default pack has is full."""


@contextmanager
def without_snapshots(training: Training) -> Generator[Take]:
    """stepguard with everything at every step but snapshots, whose size is known: the model's."""
    with TemporaryDirectory() as folder:
        options: Any = {"run": folder, "every": 1, "console": None, "dry_run": True, "on_error": "raise"}
        with stepguard.watch(training.model, training.optimizer, **options) as guard:
            guard._snapshots.keeper.next = NEVER  # pyright: ignore[reportPrivateUsage]
            yield guard.step


def memory(size: float) -> list[dict[str, Any]]:
    """Bytes of models of some sizes and of their guards."""
    rows: list[dict[str, Any]] = []
    for count in (n for n in (10**6, 10**7, 10**8) if n <= max(1e8 * size, 1e6)):
        width = round((count / 10) ** 0.5)
        rows.append(_row(f"10 layers of {width}", *_apart(_training, lambda w=width: side_by_side(10, w))))
    many = max(round(1000 * size), 10)
    rows.append(_row(f"{many:,} layers of 8", *_apart(_training, lambda: side_by_side(many, 8))))
    rows.append(_row(f"{many:,} layers, windows full", *_apart(_history, many)))
    return rows


def _row(training: str, model: int, guard: int) -> dict[str, Any]:
    share, fixed = ALLOWED
    return {"training": training, "model": model, "guard": guard, "allowed": share * model + fixed}


def _apart(measure: Callable[[Any], tuple[int, int]], given: Any) -> tuple[int, int]:
    """What `measure` gives in a process of its own."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=_send, args=(there, measure, given))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def _send(pipe: Connection, measure: Callable[[Any], tuple[int, int]], given: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(measure(given))


def _training(make: Callable[[], Training]) -> tuple[int, int]:
    """Bytes of a model's parameters, and of its guard."""
    training = make()
    _peak(lambda: _run(training, None, WARM_UP))
    bare = _peak(lambda: _run(training, None, WARM_UP))
    with without_snapshots(training) as take:
        guarded = _peak(lambda: _run(training, take, STEPS))
    return _bytes(training.model), guarded - bare


def _run(training: Training, take: Take | None, steps: int) -> None:
    for _ in range(steps):
        training.step(take)


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _history(layers: int) -> tuple[int, int]:
    """Bytes of no model, and of rules whose windows are full."""
    watched = [Layer(f"layer{place}", "Linear") for place in range(layers)]
    frames = evaluation.frames(layers, range(HISTORY))
    before = _peak(lambda: next(frames))

    def judge() -> None:
        recovery = Recovery(Engine(load_rules("default"), watched), Attempt())
        for frame in frames:
            recovery.observe(frame)

    return 0, _peak(judge) - before


def _peak(work: Callable[[], object]) -> int:
    """Bytes of this process at the most while it works."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    work()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
