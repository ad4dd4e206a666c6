"""Pairs of timings: a training bare and the same one watched, side by side in a process of their own.

Flow: in come what makes the training and what watches it; out come seconds a step of both, pair by pair. They
take step by step in turn, each the first every other time: whatever the machine does, it does to both. Pairs
have a process to themselves, so that no watcher meets what another one left behind.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
import torch._dynamo  # pyright: ignore[reportUnusedImport] - else every process imports it in its first step
from watchers import Take, Watcher
from workloads import Training

WARM_UP = 3
"""Steps that are not timed."""
LENGTH = 0.1
"""Seconds of the bare side of a pair, at least: single steps of a millisecond say little."""
LEAST = 3
"""Pairs that are taken in any case; of LONG ones one is enough."""
LONG = 10.0
"""Seconds."""
_PATIENCE = 20.0
"""Seconds in which a watcher must have ended."""
_FORK = multiprocessing.get_context("fork")
"""What was imported is there at once. The parent never computes, so there are no threads to lose."""


class PairsFailed(Exception):
    """A training or its watcher has ended by itself; says why."""


class _Limits(NamedTuple):
    """Seconds of all pairs, about, and of a single one at most."""

    seconds: float
    longest: float


class Pair(NamedTuple):
    """Seconds a step."""

    bare: float
    watched: float


def pairs(
    make: Callable[[], Training],
    watcher: Watcher,
    seconds: float,
    threads: int,
    longest: float = math.inf,
) -> list[Pair]:
    """Time a training bare and watched for so many seconds, and longer where there are too few pairs by then.

    Raises:
        PairsFailed: there is no pair: the training or the watcher failed, or one pair takes longer than
            `longest` seconds.
    """
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=_work, args=(make, watcher, _Limits(seconds, longest), threads, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = "its process has died"
    process.join(_PATIENCE)
    if process.is_alive():
        for pid in _family(process.pid or 0):
            os.kill(pid, signal.SIGKILL)
    process.join()
    if isinstance(found, str):
        raise PairsFailed(found)
    return [Pair(*each) for each in found]


def _family(pid: int) -> list[int]:
    """A process, and on Linux those that it has started."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def _work(
    make: Callable[[], Training], watcher: Watcher, limits: _Limits, threads: int, pipe: Connection
) -> None:
    """The life of the process."""
    torch.set_num_threads(threads)
    try:
        trainings = [_made(make), _made(make)]
        with watcher.attach(trainings[1]) as take:
            pipe.send(_timed(trainings, take, watcher.cycle, limits))
    except PairsFailed as fault:
        pipe.send(str(fault))
    except Exception as fault:
        pipe.send(f"{type(fault).__name__}: {fault}")


def _made(make: Callable[[], Training]) -> Training:
    torch.manual_seed(0)
    return make()


def _timed(
    trainings: list[Training], take: Take | None, cycle: int, limits: _Limits
) -> list[tuple[float, ...]]:
    pair = cycle * sum(_pair(trainings, take, WARM_UP))
    if pair > limits.longest:
        raise PairsFailed(f"a pair of {cycle} steps would take some {pair:.0f} s")
    end = time.perf_counter() + limits.seconds
    found = [_pair(trainings, take, cycle)]
    bare, watched = found[0]
    least = 1 if cycle * (bare + watched) > LONG else LEAST
    steps = cycle * max(1, round(LENGTH / (cycle * bare)))
    if steps > cycle:
        found.clear()
    while len(found) < least or time.perf_counter() < end:
        found.append(_pair(trainings, take, steps))
    return found


def _pair(trainings: list[Training], take: Take | None, steps: int) -> tuple[float, ...]:
    spent, takes = [0.0, 0.0], (None, take)
    for step in range(steps):
        for side in (0, 1) if step % 2 else (1, 0):
            began = time.perf_counter()
            trainings[side].step(takes[side])
            spent[side] += time.perf_counter() - began
    return tuple(each / steps for each in spent)
