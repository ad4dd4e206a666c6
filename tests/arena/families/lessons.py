"""Lessons in reading digits: few names, many hints, blends, phases, questions asked, tasks by the dozen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from arena.families import nets
from arena.families.pictures import small_mnist
from arena.fitting import Pair, fit, quality
from arena.training import Family, Training


def dense() -> nn.Module:
    """One hidden layer of 64."""
    return nets.mlp((196, 64, 10))


class Square(nn.Module):
    """Rows of pixels as square pictures of whatever size."""

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        return x.view(-1, 1, side, side)


def pooled() -> nn.Module:
    """Convolutions for pictures of any size, of which the strongest are kept at four places."""
    layers: list[nn.Module] = [Square()]
    for i, o in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def growing_sizes(steps: int) -> Callable[[int, Tensor, Tensor], Pair]:
    """Small pictures first, larger ones later."""

    def change(t: int, x: Tensor, y: Tensor) -> Pair:
        size = (7, 10, 14)[3 * t // steps]
        return F.interpolate(x.view(-1, 1, 14, 14), size=size, mode="area").flatten(1), y

    return change


def tight(t: int, x: Tensor, y: Tensor) -> Pair:
    """Cut-outs of 3 x 3 somewhere, made as large as the picture."""
    row, column = torch.randint(12, (2,)).tolist()
    part = x.view(-1, 1, 14, 14)[:, :, row : row + 3, column : column + 3]
    return F.interpolate(part, size=14, mode="bilinear").flatten(1), y


def _taught(model: Callable[[], nn.Module] = dense, **changes: Any) -> Training:
    return fit(model(), small_mnist(), **({"lr": 3e-3, "steps": 300} | changes))


def _blended(cut: bool = False, **changes: Any) -> Training:
    """Two pictures in one, laid over each other (mixup) or one cut into the other (cutmix)."""
    training = _taught(**changes)
    task, model = small_mnist(), training.model

    def loss(t: int) -> Tensor:
        index, share = torch.randint(len(task.x), (2, 64)), float(torch.rand(()))
        (x, other), (y, their) = task.x[index], task.y[index]
        if cut:
            mask = (torch.arange(14) < 14 * share).float()[:, None].expand(14, 14).flatten()
            mixed = x * mask + other * (1 - mask)
        else:
            mixed = x * share + other * (1 - share)
        out = model(mixed)
        return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, their)

    training.loss = loss
    return training


def _few_named(
    names: int = 200, *, teacher: float = 0.0, weight: float = 5.0, own: bool = False, **changes: Any
) -> Training:
    """Few are named. A slow copy, or the net itself where it is sure, says what the others are."""
    training = _taught(**changes)
    model, task = training.model, small_mnist()
    mean = copy.deepcopy(model).requires_grad_(False)

    def noisy(x: Tensor) -> Tensor:
        return x + 0.2 * torch.randn_like(x)

    @torch.no_grad()
    def told(x: Tensor) -> tuple[Tensor, Tensor]:
        chances = (model if own else mean)(x).softmax(1)
        return chances, (chances.max(1)[0] > 0.9).float() if own else torch.ones(len(x))

    def loss(t: int) -> Tensor:
        index, free = torch.randint(names, (32,)), torch.randint(len(task.x), (64,))
        chances, sure = told(task.x[free])
        apart = (model(noisy(task.x[free])).softmax(1) - chances).square().sum(1)
        ramp = weight * min(1.0, 2 * t / training.steps)
        return F.cross_entropy(model(noisy(task.x[index])), task.y[index]) + ramp * (sure * apart).mean()

    def follow(t: int) -> None:
        for mine, their in zip(mean.parameters(), model.parameters(), strict=True):
            mine.lerp_(their.detach(), 1 - teacher)

    training.loss, training.before = loss, follow
    training.score = lambda: quality(model if own else mean, task)
    return training


def _asking(**changes: Any) -> Training:
    """Twenty are named at first; each twentieth step those twenty that the net is least sure of too."""
    task, known = small_mnist(), list(range(20))

    def draw(t: int, n: int) -> Tensor:
        return torch.tensor(known)[torch.randint(len(known), (n,))]

    @torch.no_grad()
    def ask(model: nn.Module, _: Optimizer, progress: float) -> None:
        if round(progress * training.steps) % 20 == 19:
            pool = torch.randint(len(task.x), (400,))
            best = model(task.x[pool]).softmax(1).topk(2, 1)[0]
            known.extend(pool[(best[:, 0] - best[:, 1]).argsort()[:20]].tolist())

    training = _taught(order=draw, before=ask, **changes)
    return training


class Hands(nn.Module):
    """One body and two hands, of which the one draws and the other names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(196, 64), nn.ReLU())
        self.names, self.draws = nn.Linear(64, 10), nn.Linear(64, 196)

    def forward(self, x: Tensor) -> Tensor:
        return self.names(self.body(x))


def _phases(**changes: Any) -> Training:
    """First hidden pixels are filled in, then digits are named: another loss from one step to the next."""
    training = _taught(Hands, **changes)
    model, task, named = training.model, small_mnist(), training.loss

    def loss(t: int) -> Tensor:
        if t >= 0.4 * training.steps:
            return named(t)
        x = task.x[torch.randint(len(task.x), (64,))]
        return F.mse_loss(model.draws(model.body(x * (torch.rand_like(x) < 0.5))), x)

    training.loss = loss
    return training


def lot(x: Tensor, y: Tensor, shots: int = 5) -> tuple[Pair, Pair]:
    """Five digits under names by lot: some examples of each to learn from and some to be asked."""
    chosen = torch.randperm(10)[:5]
    rows = torch.stack([torch.nonzero(y == c).flatten()[torch.randperm(60)[: 2 * shots]] for c in chosen])
    names = torch.arange(5).repeat_interleave(shots)
    return (x[rows[:, :shots].flatten()], names), (x[rows[:, shots:].flatten()], names)


def learnt(model: nn.Module, pair: Pair, *, lr: float, inner: int, linked: bool) -> dict[str, Tensor]:
    """The weights after some steps on a task."""
    fast = dict(model.named_parameters())
    for _ in range(inner):
        grads = torch.autograd.grad(
            F.cross_entropy(functional_call(model, fast, (pair[0],)), pair[1]),
            list(fast.values()),
            create_graph=linked,
        )
        fast = {name: p - lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
    return fast


def _meta(inner_lr: float = 0.3, inner: int = 3, linked: bool = True, **changes: Any) -> Training:
    """Weights from which any five digits are learnt in three steps (Finn et al. 2017)."""
    training = _taught(lambda: nets.mlp((196, 64, 5)), **({"lr": 3e-3, "steps": 250} | changes))
    model, task = training.model, small_mnist()
    settings: dict[str, Any] = {"lr": inner_lr, "inner": inner, "linked": linked}

    def loss(t: int) -> Tensor:
        total = torch.zeros(())
        for _ in range(2):
            seen, asked = lot(task.x, task.y)
            total = total + F.cross_entropy(
                functional_call(model, learnt(model, seen, **settings), (asked[0],)), asked[1]
            )
        return total / 2

    def score() -> float:
        right = []
        for _ in range(30):
            seen, asked = lot(task.test_x, task.test_y)
            out = functional_call(model, learnt(model, seen, **settings), (asked[0],))
            right.append((out.argmax(1) == asked[1]).float().mean())
        return float(torch.stack(right).mean())

    training.loss, training.score = loss, score
    return training


lessons = Family("lessons", 0.1, 0.93, _taught)
blended = Family("lessons", 0.1, 0.93, _blended)
few_named = Family("lessons", 0.1, 0.9, _few_named)
asking = Family("lessons", 0.1, 0.9, _asking)
phases = Family("lessons", 0.1, 0.93, _phases)
meta = Family("lessons", 0.2, 0.85, _meta)

SCENARIOS = [
    blended.healthy("mixup", steps=400),
    blended.healthy("cutmix", cut=True, steps=400),
    few_named.healthy("slow-teacher", teacher=0.95),
    few_named.healthy("sure-of-itself", own=True),
    asking.healthy("asks-what-it-doubts", steps=400),
    phases.healthy("draws-then-names", steps=300),
    lessons.healthy("larger-and-larger", model=pooled, poison=growing_sizes(300)),
    meta.healthy("learns-to-learn"),
    lessons.failing("cut-out-too-tight", poison=tight, curable=False),
    few_named.failing("teacher-too-slow", teacher=0.9999, curable=False),
    few_named.failing("agrees-with-itself", teacher=0.0, weight=1e5, curable=False),
    meta.failing("inner-lr-x100", inner_lr=30.0, curable=False),
]
