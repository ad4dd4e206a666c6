"""Measures: pictures made larger, tables with holes, heat along a line, maps in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from arena import tasks
from arena.families import nets
from arena.fitting import Pair, fit, optimizer_of
from arena.tasks import Task
from arena.training import Family, Training

COOLS = 0.03


@cache
def _grey() -> Tensor:
    """A photograph of a temple, 427 x 640, in 0..1."""
    return torch.from_numpy(np.asarray(load_sample_image("china.jpg"), dtype=np.float32)).mean(2) / 255


# Pictures made twice as large.
@cache
def _patches() -> Task:
    """Stretches of 16 x 16 of the photograph, and these at 8 x 8."""
    large = _grey().unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 1, 16, 16)
    return tasks.split(F.avg_pool2d(large, 2), large, 0)


def stretched(x: Tensor) -> Tensor:
    """What any program does."""
    return F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)


class Larger(nn.Module):
    """What is to be added to the stretched picture, four pixels for each one (Shi et al. 2016)."""

    def __init__(self, shuffled: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 24, 3, padding=1), nn.PReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.PReLU()),
            nn.Conv2d(24, 4, 3, padding=1),
        )
        self.place = nn.PixelShuffle(2) if shuffled else nn.Flatten()
        nn.init.zeros_(self.net[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return stretched(x) + self.place(self.net(8 * (x - 0.5))).view(-1, 1, 16, 16) / 8


@torch.no_grad()
def gained(model: nn.Module, task: Task) -> float:
    """The share of the stretched picture's error that is gone."""
    out, plain = model.eval()(task.test_x), stretched(task.test_x)
    return 1 - float(F.mse_loss(out, task.test_y) / F.mse_loss(plain, task.test_y))


def slopes(out: Tensor, y: Tensor) -> Tensor:
    """Absolute errors of pixels, and of the steps from each to its neighbours."""
    error = out - y
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def noisy_targets(t: int, x: Tensor, y: Tensor) -> Pair:
    """Nothing clean is ever seen (Lehtinen et al. 2018)."""
    return x, y + 0.05 * torch.randn_like(y)


def _larger(model: Callable[[], nn.Module] = Larger, **changes: Any) -> Training:
    settings: dict[str, Any] = {"lr": 3e-3, "steps": 400, "batch": 16, "score": gained}
    return fit(model(), _patches(), **(settings | changes))


# A table with holes.
class Factors(nn.Module):
    """Rows and columns have sixteen traits each, and a level (Koren et al. 2009)."""

    def __init__(self, std: float = 0.1, rank: int = 16) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(1797, rank), nn.Embedding(64, rank)
        self.low, self.high = nn.Embedding(1797, 1), nn.Embedding(64, 1)
        for part in (self.rows, self.columns):
            nn.init.normal_(part.weight, std=std)
        for part in (self.low, self.high):
            nn.init.zeros_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        row, column = x.unbind(1)
        both = (self.rows(row) * self.columns(column)).sum(1, keepdim=True)
        return both + self.low(row) + self.high(column)


@cache
def _holes() -> Task:
    """The ink of 1,797 digits at 64 places, less the mean of each place; four fifths are known."""
    ink = torch.cat([tasks.digits().x, tasks.digits().test_x])
    ink = ink - ink.mean(0)
    known = torch.rand(ink.shape, generator=torch.Generator().manual_seed(6)) < 0.8
    seen, asked = known.nonzero(), (~known).nonzero()
    return Task(seen, ink[known][:, None], asked, ink[~known][:, None])


def _filled(model: Callable[[], nn.Module] = Factors, price: float = 5e-5, **changes: Any) -> Training:
    training = fit(model(), _holes(), **({"lr": 1e-2, "steps": 500, "batch": 2048} | changes))
    loss = training.loss

    def priced(t: int) -> Tensor:
        return loss(t) + price * sum(p.square().sum() for p in training.model.parameters())

    training.loss = priced
    return training


# Heat along a line.
@cache
def _heat() -> tuple[Tensor, Tensor]:
    """Brightness along a row of the photograph, smoothed, as eight cosines, and how fast each fades."""
    row = _grey()[200].view(32, 20).mean(1)
    waves = torch.cos(math.pi * torch.arange(8)[:, None] * (torch.arange(32) + 0.5) / 32)
    height = (waves @ row) / (waves**2).sum(1)
    height[0] = 0.0
    return height / height.norm(), COOLS * (math.pi * torch.arange(8)) ** 2


def warmth(place: Tensor, time: Tensor) -> Tensor:
    """The true solution."""
    height, fading = _heat()
    waves = torch.cos(math.pi * place * torch.arange(8))
    return (height * waves * (-fading * time).exp()).sum(1, keepdim=True)


def slope(out: Tensor, along: Tensor) -> Tensor:
    """The derivative, of which a further one can be taken."""
    return torch.autograd.grad(out.sum(), along, create_graph=True)[0]


def _heated(
    start: float = 10.0,
    *,
    scale: float = 1.0,
    activation: nets.Activation = nn.Tanh,
    steps: int = 500,
    lr: float = 1e-2,
    **changes: Any,
) -> Training:
    """The heat equation holds, nothing leaves at the ends, and it begins as it began (Raissi et al. 2019)."""
    model = nets.mlp((2, 32, 32, 1), activation)
    optimizer = optimizer_of("adam", model.parameters(), lr)

    def told(place: Tensor, time: Tensor) -> Tensor:
        return model(torch.cat([(4 * place - 2) * scale, 2 * time - 1], 1))

    def loss(t: int) -> Tensor:
        place, time = torch.rand(2, 96, 1).requires_grad_()
        out = told(place, time)
        left = slope(out, time) - COOLS * slope(slope(out, place), place)
        edge = torch.randint(2, (16, 1)).float().requires_grad_()
        leaving = slope(told(edge, torch.rand(16, 1)), edge)
        at = torch.rand(64, 1)
        begun = told(at, torch.zeros_like(at)) - warmth(at, torch.zeros_like(at))
        return left.square().mean() + 0.1 * leaving.square().mean() + start * begun.square().mean()

    def score() -> float:
        grid = torch.cartesian_prod(torch.linspace(0, 1, 40), torch.linspace(0.1, 1, 20))
        place, time = grid.split(1, 1)
        with torch.no_grad():
            out, true = told(place, time), warmth(place, time)
        return 1 - float(F.mse_loss(out, true) / true.var())

    return Training(model, optimizer, loss, score, steps, **changes)


# A map in the plane.
@cache
def _near() -> tuple[Tensor, Tensor]:
    """How near 400 digits are to each other, as chances that add up to one; and their names."""
    x, y = tasks.digits().x[:400], tasks.digits().y[:400]
    apart = torch.cdist(x, x).square()
    wide = apart.sort(1)[0][:, 12:13]
    near = (-3 * apart / wide).fill_diagonal_(-math.inf).softmax(1)
    return (near + near.T) / 800, y


def _mapped(
    spread: float = 0.1,
    *,
    opt: str = "sgd",
    lr: float = 100.0,
    optim: dict[str, Any] | None = None,
    steps: int = 300,
    pressed: Callable[[float], float] = lambda p: 8.0 if p < 0.3 else 1.0,
    **changes: Any,
) -> Training:
    """Places in the plane, near where digits are near (van der Maaten and Hinton 2008)."""
    near, names = _near()
    model = nn.Embedding(400, 2)
    nn.init.normal_(model.weight, std=spread)
    optimizer = optimizer_of(opt, model.parameters(), lr, **(optim or {}))

    def loss(t: int) -> Tensor:
        place = model(torch.arange(400))
        apart = (place[:, None] - place).square().sum(2)
        close = (1 / (1 + apart)) * (1 - torch.eye(400))
        chances = close / close.sum()
        aim = pressed(t / steps) * near
        return (aim * ((aim + 1e-12).log() - (chances + 1e-12).log())).sum()

    @torch.no_grad()
    def score() -> float:
        apart = torch.cdist(model.weight, model.weight).fill_diagonal_(math.inf)
        if not model.weight.isfinite().all():
            return float("nan")
        return float((names[apart.argmin(1)] == names).float().mean())

    return Training(model, optimizer, loss, score, steps, **changes)


larger = Family("measures", 0.0, 0.18, _larger)
filled = Family("measures", 0.0, 0.58, _filled)
heated = Family("measures", 0.0, 0.98, _heated)
mapped = Family("measures", 0.1, 0.95, _mapped)
momentum = {"momentum": 0.8}

SCENARIOS = [
    larger.healthy("twice-as-large"),
    larger.healthy("slopes-too", criterion=slopes),
    larger.healthy("never-clean", poison=noisy_targets, steps=600),
    filled.healthy("holes-filled"),
    filled.healthy("holes-by-rmsprop", opt="rmsprop", lr=5e-3, steps=600),
    heated.healthy("heat"),
    mapped.healthy("pressed-then-free", optim=momentum),
    mapped.healthy("map-by-adam", opt="adam", lr=0.5),
    larger.failing("laid-out-wrongly", model=partial(Larger, shuffled=False), curable=False),
    filled.failing("traits-all-zero", model=partial(Factors, std=0.0)),
    filled.failing("price-of-the-whole-table", price=1.0, curable=False),
    filled.failing("holes-sgd-lr", opt="sgd", lr=300.0),
    heated.failing("begins-anyhow", start=0.0, curable=False),
    heated.failing("places-in-pixels", scale=640.0, lr=1e-3),
    heated.failing("no-second-derivative", activation=nn.ReLU, curable=False),
    mapped.failing("starts-far-apart", spread=100.0, lr=1.0, optim=momentum),
    mapped.failing("map-by-adam-lr-300", opt="adam", lr=300.0),
]
