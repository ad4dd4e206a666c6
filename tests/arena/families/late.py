"""Nets over sets of rows of digits, and means with their own spread of patients' scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import Pair, fit
from arena.tasks import Task
from arena.training import Family, Training


class Rows(nn.Module):
    """Each row of a digit with its place through one net, their mean through another."""

    def __init__(self, drop: float = 0.0) -> None:
        """Two layers each, GELU between."""
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.LayerNorm(64))
        self.head = nn.Sequential(nn.Dropout(drop), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of 10 classes."""
        places = torch.eye(8).expand(len(x), 8, 8)
        return self.head(self.rows(torch.cat([x.view(-1, 8, 8), places], 2)).mean(1))


def _sets(drop: float = 0.0, **changes: Any) -> Training:
    return fit(Rows(drop), tasks.digits(), **({"lr": 3e-3, "steps": 250} | changes))


def one_against_all(out: Tensor, y: Tensor) -> Tensor:
    """Ten yes-or-no questions, summed."""
    return F.binary_cross_entropy_with_logits(out, F.one_hot(y, 10).float(), reduction="none").sum(1).mean()


def mixed(t: int, x: Tensor, y: Tensor) -> Pair:
    """Each example with a third of another one."""
    return 0.67 * x + 0.33 * x[torch.randperm(len(x))], y


def cold(out: Tensor, y: Tensor) -> Tensor:
    """Logits divided by a temperature that was meant to be multiplied."""
    return F.cross_entropy(out / 1e3, y)


def _patients(far: float = 0.0) -> Task:
    """Ten columns, one score; with `far` it lies so many of its spreads from zero."""
    task = tasks.diabetes()
    return Task(task.x, task.y + far, task.test_x, task.test_y + far)


def _spread(out: Tensor, y: Tensor) -> Tensor:
    """Minus the log of a normal density with the mean and log variance that the net gives."""
    mean, log = out[:, :1], out[:, 1:]
    return (0.5 * log + 0.5 * (y - mean).square() * (-log).exp()).mean()


def _spread_wrong(out: Tensor, y: Tensor) -> Tensor:
    """The same with the sign of the log forgotten in the weight."""
    mean, log = out[:, :1], out[:, 1:]
    return (0.5 * log + 0.5 * (y - mean).square() * log.exp()).mean()


@torch.no_grad()
def _explained(model: nn.Module, task: Task) -> float:
    """R2 of the mean."""
    out = model.eval()(task.test_x)[:, :1]
    return 1 - float(F.mse_loss(out, task.test_y) / task.test_y.var(correction=0))


def _gauss(far: float = 0.0, **changes: Any) -> Training:
    settings = {"lr": 3e-3, "steps": 300, "criterion": _spread, "score": _explained}
    return fit(nets.mlp((10, 32, 32, 2), nn.Tanh), _patients(far), **(settings | changes))


def _mean_of(out: Tensor, y: Tensor) -> Tensor:
    """The mean alone, by squares."""
    return F.mse_loss(out[:, :1], y)


sets = Family("sets", 0.1, 0.96, _sets)
gauss = Family("gauss", 0.0, 0.5, _gauss)

SCENARIOS = [
    sets.healthy("plain"),
    sets.healthy("one-against-all", criterion=one_against_all),
    sets.healthy("mixed", poison=mixed, steps=400),
    sets.healthy("sgd-plateau", opt="sgd", lr=0.3, steps=500),
    sets.healthy("zero-head", prepare=lambda m: nn.init.zeros_(m.head[3].weight)),
    sets.failing("lr-x300", lr=1.0),
    sets.failing("head-alone-cold", parameters=lambda m: [m.head[3].bias], curable=False),
    sets.failing("dropout-98", drop=0.98, curable=False),
    sets.failing("divided-by-1000", criterion=cold, opt="sgd", lr=0.1),
    sets.failing("shuffled", poison=f.other_labels(10), curable=False),
    sets.failing("sgd-lr-30", opt="sgd", lr=30.0),
    gauss.healthy("plain"),
    gauss.healthy("far-targets", far=8.0, criterion=_mean_of, lr=1e-2, steps=400),
    gauss.healthy("far-targets-spread", far=3.0, lr=1e-2, steps=400),
    gauss.healthy("batch-8", batch=8, lr=1e-3, steps=600),
    gauss.failing("sign-of-the-log", criterion=_spread_wrong, curable=False),
    gauss.failing("shuffled", poison=lambda t, x, y: (x, y[torch.randperm(len(y))]), curable=False),
    gauss.failing("lr-3", lr=3.0),
    gauss.failing("weights-x20", prepare=f.weights(20.0), opt="sgd", lr=1e-3),
]
