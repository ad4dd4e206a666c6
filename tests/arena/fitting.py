"""Supervised training with every fault and oddity that a setting can name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arena.tasks import Task
from arena.training import Training

Pair = tuple[Tensor, Tensor]
HELD_OUT = 128
"""So many examples of the test part a validation looks at."""


def optimizer_of(
    kind: str | type[Optimizer], parameters: Iterable[Any], lr: float, **settings: Any
) -> Optimizer:
    """An optimizer by its short name or its class."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    kinds |= {"rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad}
    make: Any = kinds[kind] if isinstance(kind, str) else kind
    return make(parameters, lr=lr, **settings)


def criterion_of(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy, at each place where there are several, or the mean square."""
    if not task.classes:
        return F.mse_loss
    return lambda out, y: F.cross_entropy(out.flatten(0, -2), y.flatten())


@torch.no_grad()
def quality(model: nn.Module, task: Task) -> float:
    """Accuracy, minus the cross entropy of texts, or R2, on the test part."""
    model.eval()
    out = model(task.test_x).float()
    if not out.isfinite().all():
        return float("nan")
    if not task.classes:
        return 1 - float(F.mse_loss(out, task.test_y) / task.test_y.var(correction=0))
    if task.test_y.dim() > 1:
        return -float(criterion_of(task)(out, task.test_y))
    return float((out.argmax(-1) == task.test_y).float().mean())


def fit(
    model: nn.Module,
    task: Task,
    *,
    lr: float,
    opt: str | type[Optimizer] = "adam",
    steps: int = 300,
    batch: int = 64,
    prepare: Callable[[nn.Module], object] | None = None,
    parameters: Callable[[nn.Module], Iterable[Any]] = nn.Module.parameters,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    scale: float = 1.0,
    poison: Callable[[int, Tensor, Tensor], Pair] | None = None,
    order: Callable[[int, int], Tensor] | None = None,
    schedule: Callable[[float], float] | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    before: Callable[[nn.Module, Optimizer, float], object] | None = None,
    autocast: torch.dtype | None = None,
    optim: dict[str, Any] | None = None,
    score: Callable[[nn.Module, Task], float] = quality,
    validated: bool = False,
    **loop: Any,
) -> Training:
    """A supervised training of `model` on `task`.

    `prepare` changes the model at first, `poison` a batch, `order` draws a batch (step, size), `schedule`
    scales the learning rate by progress, `before` acts on model and optimizer at each step, by progress.
    `validated` says that the loss on held-out data is looked at on the way.
    """
    if prepare is not None:
        prepare(model)
    optimizer = optimizer_of(opt, parameters(model), lr, **(optim or {}))
    judge = criterion or criterion_of(task)

    def loss(t: int) -> Tensor:
        index = torch.randint(len(task.x), (batch,)) if order is None else order(t, batch)
        x, y = task.x[index], task.y[index]
        if poison is not None:
            x, y = poison(t, x, y)
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            out = model(x) if forward is None else forward(model, x)
        return judge(out.float() if autocast else out, y) * scale

    def validate() -> float:
        x, y = task.test_x[:HELD_OUT], task.test_y[:HELD_OUT]
        return float(judge(model(x).float(), y) * scale)

    scheduler = None
    if schedule is not None:
        scheduler = LambdaLR(optimizer, lambda t: schedule(t / steps))
    at_step = None if before is None else lambda t: before(model, optimizer, t / steps)
    return Training(
        model,
        optimizer,
        loss,
        lambda: score(model, task),
        steps,
        scheduler,
        before=at_step,
        validate=validate if validated else None,
        **loop,
    )
