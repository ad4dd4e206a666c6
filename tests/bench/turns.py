"""Trainings that take turns: each in a process of its own, which stands still while it is not its turn.

So what a watcher does behind the training's back, in a thread that writes or a service that it started, falls
into its own turns and into nobody else's, and no two trainings share an interpreter or a heap.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch._dynamo  # pyright: ignore[reportUnusedImport] - else every process imports it in its first step
from watchers import Watcher
from workloads import Training

WARM_UP = 3
"""Steps that are not timed."""
_PATIENCE = 20.0
"""Seconds in which a watcher must have ended."""
_FORK = multiprocessing.get_context("fork")
"""What was imported is there at once. The parent never computes, so there are no threads to lose."""


class RunnerFailed(Exception):
    """A training or its watcher has ended by itself; says why."""


class Runner:
    """One training with its watcher. It is stopped whenever no method of it is running."""

    def __init__(self, make: Callable[[], Training], watcher: Watcher, threads: int) -> None:
        self._pipe, there = _FORK.Pipe()
        self._process = _FORK.Process(target=_work, args=(make, watcher, threads, there))
        self._process.start()
        there.close()
        self.spent = 0.0
        """Seconds of its turns so far."""

    def warm_up(self) -> None:
        """Wait until the watcher is attached, and take the first steps."""
        self._answer()
        self._go_on()
        self.turn(WARM_UP)
        self.spent = 0.0

    def turn(self, steps: int) -> float:
        """Take so many steps; seconds a step. RunnerFailed if the training has ended."""
        self._go_on()
        self._pipe.send(steps)
        seconds = self._answer()
        self.spent += seconds
        return seconds / steps

    def close(self) -> None:
        """Have the watcher take itself off; end the process."""
        self._go_on()
        with suppress(OSError):
            self._pipe.send(0)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            for pid in self._family():
                os.kill(pid, signal.SIGKILL)
        self._process.join()

    def _go_on(self) -> None:
        for pid in self._family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _answer(self) -> float:
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = "its process has died"
        if isinstance(answer, str):
            raise RunnerFailed(answer)
        for pid in self._family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return answer

    def _family(self) -> list[int]:
        """The process, and on Linux those that it has started."""
        found = [self._process.pid or 0] if self._process.is_alive() else []
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    found += map(int, children.read_text().split())
        return found


def _work(make: Callable[[], Training], watcher: Watcher, threads: int, pipe: Connection) -> None:
    """The life of the process: steps on demand, until none are asked for."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        training = make()
        with watcher.attach(training) as take:
            pipe.send(0.0)
            while steps := pipe.recv():
                began = time.perf_counter()
                for _ in range(steps):
                    training.step(take)
                pipe.send(time.perf_counter() - began)
    except Exception as fault:
        pipe.send(f"{type(fault).__name__}: {fault}")


@contextmanager
def runners(
    make: Callable[[], Training], watchers: dict[str, Watcher], threads: int
) -> Generator[dict[str, Runner]]:
    """One runner for each watcher, warmed up; what fails by then is printed and left out."""
    made = {name: Runner(make, watcher, threads) for name, watcher in watchers.items()}
    try:
        yield dict(_warm(made))
    finally:
        for runner in made.values():
            runner.close()


def _warm(made: dict[str, Runner]) -> Iterator[tuple[str, Runner]]:
    for name, runner in made.items():
        try:
            runner.warm_up()
        except RunnerFailed as fault:
            print(f"{name} is left out: {fault}")
        else:
            yield name, runner
