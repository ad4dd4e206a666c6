"""How far cars go on a gallon, told by kernels, trees, curves, weights in doubt and bundles of quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from mlxtend.data import autompg_data
from torch import Tensor, nn

from arena import tasks
from arena.families import nets
from arena.fitting import fit
from arena.tasks import Task
from arena.training import Family, Training


@cache
def _cars(scaled: bool = True) -> Task:
    """392 cars of seven columns, standardised or not, and miles to a gallon, standardised."""
    columns, miles = (torch.tensor(part, dtype=torch.float32) for part in autompg_data())
    x = columns[:, :7]
    x = (x - x.mean(0)) / x.std(0) if scaled else x
    return tasks.split(x, ((miles - miles.mean()) / miles.std()).view(-1, 1), 0)


class Kernel(nn.Module):
    """A Gaussian process over the columns, or over what a net makes of them (Wilson et al. 2016)."""

    def __init__(self, length: float = 1.0, deep: bool = False, noise: float = 0.5) -> None:
        super().__init__()
        self.net = nets.mlp((7, 32, 4), nn.Tanh) if deep else nn.Identity()
        self.length = nn.Parameter(torch.full((4 if deep else 7,), math.log(length)))
        self.noise, self.size = nn.Parameter(torch.tensor(math.log(noise))), nn.Parameter(torch.zeros(()))

    def alike(self, one: Tensor, other: Tensor) -> Tensor:
        one, other = (self.net(part) / self.length.exp() for part in (one, other))
        apart = (one[:, None] - other).square().sum(2)
        return (self.size - apart / 2).exp()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The root of the covariance, and what it makes of the targets."""
        root = torch.linalg.cholesky(self.alike(x, x) + (self.noise.exp() ** 2 + 1e-4) * torch.eye(len(x)))
        return root, torch.cholesky_solve(y, root)


def _kernel(deep: bool = False, length: float = 1.0, batch: int = 0, **changes: Any) -> Training:
    """The likelihood of all cars together, or of some by lot: below zero where it is good."""
    task = _cars()
    training = fit(Kernel(length, deep), task, **({"lr": 3e-2, "steps": 150} | changes))
    model = training.model

    def loss(t: int) -> Tensor:
        rows = torch.randperm(len(task.x))[: batch or len(task.x)]
        y = task.y[rows]
        root, solved = model(task.x[rows], y)
        return (root.diagonal().log().sum() + 0.5 * (y * solved).sum()) / len(y)

    @torch.no_grad()
    def score() -> float:
        _, solved = model(task.x, task.y)
        out = model.alike(task.test_x, task.x) @ solved
        return 1 - float(F.mse_loss(out, task.test_y) / task.test_y.var(correction=0))

    training.loss, training.score = loss, score
    return training


class Tree(nn.Module):
    """Fifteen soft questions, sixteen answers (Frosst and Hinton 2017)."""

    def __init__(self, sharp: float = 1.0) -> None:
        super().__init__()
        self.sharp, self.ask, self.leaves = sharp, nn.Linear(7, 15), nn.Parameter(torch.zeros(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        right = (self.sharp * self.ask(x)).sigmoid()
        here = torch.ones(len(x), 1)
        for depth in range(4):
            mine = right[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            here = torch.stack([here * (1 - mine), here * mine], 2).flatten(1)
        return here @ self.leaves


class Curves(nn.Module):
    """A small net for each column, and the sum of what they say (Agarwal et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nets.mlp((1, 16, 1), nn.ELU) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.cat([net(x[:, i : i + 1]) for i, net in enumerate(self.columns)], 1)
        if self.training:
            parts = parts * (torch.rand(len(x), 7) < 0.95).float()
        return parts.sum(1, keepdim=True)


class Doubtful(nn.Linear):
    """Each weight is a bell, from which it is drawn anew at each step (Blundell et al. 2015)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.width = nn.Parameter(torch.full_like(self.weight, -4.0))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.training:
            weight = weight + F.softplus(self.width) * torch.randn_like(weight)
        return F.linear(x, weight, self.bias)

    def cost(self) -> Tensor:
        """How far the bells are from the one they should be like, 0.3 wide."""
        width = F.softplus(self.width) / 0.3
        return 0.5 * (width**2 + (self.weight / 0.3) ** 2 - 1 - 2 * width.log()).sum()


def doubtful() -> nn.Module:
    """Two layers of bells."""
    return nn.Sequential(Doubtful(7, 32), nn.Tanh(), Doubtful(32, 1))


def _doubted(shared: float = 313.0, **changes: Any) -> Training:
    """What the weights cost is shared among all cars."""
    training = _told(doubtful, **({"steps": 600, "lr": 1e-2} | changes))
    loss = training.loss

    def priced(t: int) -> Tensor:
        cost = sum(m.cost() for m in training.model.modules() if isinstance(m, Doubtful))
        return loss(t) / (2 * 0.15) + cost / shared

    training.loss = priced
    return training


class Bundle(nn.Module):
    """Nine quantiles, each by something positive above the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.mlp((7, 48, 9))

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return torch.cat([out[:, :1] - 1, F.softplus(out[:, 1:] - 1)], 1).cumsum(1)


def pinball(out: Tensor, y: Tensor) -> Tensor:
    """Each quantile's own price for being too low or too high."""
    level, error = torch.linspace(0.1, 0.9, 9), y - out
    return torch.maximum(level * error, (level - 1) * error).mean()


def asymmetric(out: Tensor, y: Tensor) -> Tensor:
    """Too low costs somewhat more than too high, by squares: an expectile."""
    error = y - out
    return (error.square() * torch.where(error > 0, 0.6, 0.4)).mean()


def swapped(out: Tensor, y: Tensor) -> Tensor:
    """The larger of the two prices became the smaller one: no error is too large."""
    level, error = torch.linspace(0.1, 0.9, 9), y - out
    return torch.minimum(level * error, (level - 1) * error).mean()


def smooth() -> nn.Module:
    """One hidden layer of 32."""
    return nets.mlp((7, 32, 1), nn.SiLU)


@torch.no_grad()
def middle(model: nn.Module, task: Task) -> float:
    """R2 of the middle output."""
    out = model.eval()(task.test_x)
    out = out[:, out.shape[1] // 2, None]
    return 1 - float(F.mse_loss(out, task.test_y) / task.test_y.var(correction=0))


def whole(t: int, n: int) -> Tensor:
    """All cars at each step."""
    return torch.arange(313)


def _told(model: Callable[[], nn.Module] = Tree, scaled: bool = True, **changes: Any) -> Training:
    settings: dict[str, Any] = {"lr": 1e-2, "steps": 400, "batch": 32, "score": middle}
    return fit(model(), _cars(scaled), **(settings | changes))


kernel = Family("cars", 0.0, 0.88, _kernel)
told = Family("cars", 0.0, 0.88, _told)
doubted = Family("cars", 0.0, 0.88, _doubted)

SCENARIOS = [
    kernel.healthy("kernel", lr=0.1, steps=100),
    kernel.healthy("deep-kernel-of-64", deep=True, batch=64, lr=2e-2, steps=200),
    told.healthy("soft-tree", lr=3e-2),
    told.healthy("curve-for-each-column", model=Curves, steps=500),
    doubted.healthy("weights-in-doubt"),
    told.healthy("nine-quantiles", model=Bundle, criterion=pinball),
    told.healthy(
        "rather-too-high", model=lambda: nets.mlp((7, 32, 1), nn.SiLU), criterion=asymmetric, order=whole
    ),
    kernel.failing("sees-no-neighbours", length=1e-3, lr=1e-2, curable=False),
    told.failing("tree-of-raw-columns", scaled=False, lr=3e-2),
    doubted.failing("doubt-shared-by-none", shared=1.0, curable=False),
    told.failing("prices-swapped", model=Bundle, criterion=swapped, curable=False),
]
