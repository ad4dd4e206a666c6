"""One small training, bare or guarded: the loop that all scenarios share, and what each may change in it.

Flow: a scenario builds a `Training` from the global generators, `run` takes its steps, `score` says on
held-out data how well it ended.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import stepguard

VALIDATED = 20
"""Each how many steps a training is validated, and its score looked at."""


@dataclass
class Training:
    """A model in training: `loss(t)` makes the loss of step `t`, `score()` is larger where it is better."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[int], Tensor]
    score: Callable[[], float]
    steps: int
    scheduler: Any = None
    scaler: Any = None
    clip: float | None = None
    accumulate: int = 1
    zero_grad: bool = True
    before: Callable[[int], object] | None = None
    """Called before each step: what changes in mid-run, or another model's step."""
    validate: Callable[[], float] | None = None
    """The loss on data held out from training, of a model in eval mode; logged as `val_loss`."""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """What the loss notes beside itself, as people log it: by name, at each step."""
    kept: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else a snapshot must hold: another model's optimizer."""
    guard: stepguard.Guard | None = None
    notes: dict[str, float] = field(default_factory=dict[str, float])

    def run(self, guard: stepguard.Guard | None = None) -> None:
        """Take all steps; under a guard what it raises goes through."""
        self.guard = guard
        self.model.train()
        with warnings.catch_warnings():
            # A scheduler complains of a skipped first step, and torch of a scaler without a GPU.
            warnings.simplefilter("ignore")
            for t in range(self.steps):
                if guard is not None and t % VALIDATED == 0:
                    guard.log(score=self.looked_at(self.score))
                self.step(t)

    def step(self, t: int) -> None:
        """One optimizer step, of several backward passes where gradients are accumulated."""
        if self.before is not None:
            self.before(t)
        total = torch.zeros(())
        for part in range(self.accumulate):
            loss = self.loss(t * self.accumulate + part) / self.accumulate
            self.backward(loss)
            total = total + loss.detach().float()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.take(total)
        if self.zero_grad:
            self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.guard is not None and self.validate is not None and (t + 1) % VALIDATED == 0:
            with torch.no_grad():
                self.guard.log(val_loss=self.looked_at(self.validate))

    def looked_at(self, look: Callable[[], float]) -> float:
        """What `look` finds in eval mode, and the training left as if it had never looked."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        with torch.random.fork_rng(devices=()):
            found = look()
        for module in training:
            module.training = True
        return found

    def backward(self, loss: Tensor) -> None:
        """The backward pass; a loss without a graph, the fault of some scenarios, has none."""
        if not loss.requires_grad:
            return
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def take(self, loss: Tensor) -> None:
        """The optimizer's step, under the guard where there is one."""
        if self.guard is not None:
            self.guard.log(**self.metrics)
            self.guard.step(loss)
        elif self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def watch(self, **settings: Any) -> stepguard.Guard:
        """Put the training under a guard, as a user would."""
        guard = stepguard.watch(
            self.model, self.optimizer, scheduler=self.scheduler, scaler=self.scaler, **settings
        )
        guard.keep(**self.kept)
        return guard


@dataclass(frozen=True)
class Scenario:
    """A kind of training, the same for each seed but for the draw of the generators.

    `intent` is what it was written for, `failing` or `healthy`, and labels nothing: the outcome does.
    `chance` and `reference` are the scores of knowing nothing and of a well-tuned run of the family.
    """

    name: str
    family: str
    intent: str
    build: Callable[..., Training]
    """It takes what should be otherwise than the scenario says: `width`, where its family has one."""
    chance: float
    reference: float
    curable: bool = True
    """Whether another learning rate, initialisation, clipping or leaving out batches can cure it."""

    def make(self, seed: int) -> Training:
        """Build it with the generators at a seed."""
        torch.manual_seed(seed)
        return self.build()

    def normalised(self, score: float) -> float:
        """The score between chance (0) and reference (1); not finite counts as -1."""
        value = (score - self.chance) / (self.reference - self.chance)
        return value if -1 < value < 10 else -1.0

    def train(self, attempt: stepguard.Attempt, **watch: Any) -> float:
        """One guarded attempt inside `stepguard.supervise`, which seeds it; the normalised score."""
        training = self.build()
        with training.watch(**({"console": None, "run": None} | watch)) as guard:
            training.run(guard)
        return self.normalised(training.score())


@dataclass(frozen=True)
class Family:
    """Scenarios of one kind of network on one task; whole families are held out from tuning."""

    name: str
    chance: float
    reference: float
    base: Callable[..., Training]

    def _make(self, name: str, intent: str, curable: bool, changes: dict[str, Any]) -> Scenario:
        build = partial(self.base, **changes)
        return Scenario(f"{self.name}/{name}", self.name, intent, build, self.chance, self.reference, curable)

    def healthy(self, name: str, /, **changes: Any) -> Scenario:
        """A scenario that should train well."""
        return self._make(name, "healthy", True, changes)

    def failing(self, name: str, /, *, curable: bool = True, **changes: Any) -> Scenario:
        """A scenario that should not."""
        return self._make(name, "failing", curable, changes)
