from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import stepguard
from stepguard.recover.recovery import Observation

MakeOptimizer = Callable[[Any], Optimizer]


def a_net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3, bias=False)
    )


class Training:
    """A small real training with batch norm and dropout, the same whenever it is made."""

    def __init__(
        self,
        make: MakeOptimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        net: Callable[[], nn.Module] = a_net,
    ) -> None:
        torch.manual_seed(0)
        self.model = net()
        self.optimizer = make(self.model.parameters())
        self.batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(8)]
        self.factors: dict[int, float] = {}
        """Factors on the loss of some steps: NaN, or one that makes it large."""
        self.now = 0
        torch.manual_seed(1)

    def loss(self) -> Tensor:
        """The loss of the next batch."""
        x, y = self.batches[self.now % len(self.batches)]
        loss = F.cross_entropy(self.model(x), y) * self.factors.get(self.now, 1.0)
        self.now += 1
        return loss

    def run(self, steps: int, take: Callable[[Tensor], object] | None = None) -> None:
        """Train; `take` takes each step, given its loss, the optimizer itself by default."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            self.optimizer.step() if take is None else take(loss)

    def state(self) -> dict[str, Any]:
        """Everything that a step may change, generator included."""
        states = self.model.state_dict(), self.optimizer.state_dict(), torch.get_rng_state()
        return _flat(copy.deepcopy(states))

    def hooks(self) -> int:
        """Hooks on model and optimizer."""
        return sum(
            len(hooks)
            for owner in (*self.model.modules(), self.optimizer)
            for name, hooks in vars(owner).items()
            if name.endswith("_hooks")
        )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by their paths; a tensor as its bytes, so that equal means bit for bit."""
    if isinstance(value, Tensor):
        return {path: (value.dtype, tuple(value.shape), value.detach().numpy().tobytes())}
    if isinstance(value, dict):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {str(place): part for place, part in enumerate(value)}
    else:
        return {path: value}
    return {key: leaf for name, part in parts.items() for key, leaf in _flat(part, f"{path}/{name}").items()}


@pytest.fixture
def training() -> type[Training]:
    return Training


@pytest.fixture
def rules(tmp_path: Path) -> Callable[[str], Path]:
    """Write a rule file from the lines of its rules."""
    count = 0

    def write(text: str) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"rules-{count}.yaml"
        lines = "\n".join(f"  {line}" for line in text.strip().splitlines())
        path.write_text(f"version: 1\nrules:\n{lines}\n", encoding="utf-8")
        return path

    return write


class Guarded:
    """A guard that leaves nothing on disk or terminal, and what it told its subscribers."""

    def __init__(self, training: Training, **options: Any) -> None:
        self.seen: list[Observation] = []
        quiet: dict[str, Any] = {"run": None, "console": None, "on_error": "raise"}
        self.guard = stepguard.watch(training.model, training.optimizer, **{**quiet, **options})
        self.guard.subscribe(self.seen.append)

    def decided(self) -> list[tuple[int, str, str]]:
        """Step, rule and action of every decision."""
        return [(each.step, each.rule, each.kind) for each in self.guard.decisions]

    def scalars(self, name: str) -> list[float | None]:
        """A scalar of every frame."""
        return [observation.frame.scalars.get(name) for observation in self.seen]


@pytest.fixture
def watched() -> Iterator[Callable[..., Guarded]]:
    """Guard a training quietly; a fault inside the guard fails the test."""
    made: list[Guarded] = []

    def watch(training: Training, **options: Any) -> Guarded:
        made.append(Guarded(training, **options))
        return made[-1]

    yield watch
    for each in made:
        each.guard.close()
