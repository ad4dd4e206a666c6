"""A trained reader of digits that is adapted by few weights, gently, or to what it knows already."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from arena import faults as f
from arena.families import nets
from arena.families.pictures import small_mnist
from arena.fitting import Pair, fit, quality
from arena.tasks import Task
from arena.training import Family, Training


class Reader(nn.Module):
    """A transformer over seven strips of a digit, two rows each, before which learnt ones may be put."""

    def __init__(self, width: int = 32, prompts: int = 0) -> None:
        super().__init__()
        self.rows, self.place = nn.Linear(28, width), nn.Parameter(torch.randn(7, width) * 0.1)
        self.prompts = nn.Parameter(torch.randn(prompts, width) * 0.3)
        self.blocks = nn.Sequential(*(nets.Block(width, post=False, causal=False) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rows(x.view(-1, 7, 28)) + self.place
        h = torch.cat([self.prompts.expand(len(h), -1, -1), h], 1)
        return self.head(self.norm(self.blocks(h)).mean(1))


class Lora(nn.Module):
    """A fixed layer and a learnt product of two thin matrices beside it (Hu et al. 2021)."""

    def __init__(self, fixed: nn.Linear, rank: int = 4, scale: float = 2.0, zeros: str = "b") -> None:
        super().__init__()
        self.fixed, self.scale = fixed, scale
        self.a = nn.Parameter(torch.randn(rank, fixed.in_features) / math.sqrt(fixed.in_features))
        self.b = nn.Parameter(torch.zeros(fixed.out_features, rank))
        if "a" in zeros:
            nn.init.zeros_(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(x) + x @ self.a.T @ self.b.T * self.scale


@cache
def _read() -> dict[str, Tensor]:
    """What 300 steps on upright digits left, made once with their own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        training = fit(Reader(), small_mnist(), lr=5e-3, steps=300, schedule=f.one_cycle)
        training.run()
    return training.model.state_dict()


@cache
def _new(kind: str) -> Task:
    """Digits on their side, and if `turned` dark on light too: the reader knows next to none of them."""
    task = small_mnist()
    parts = [part.view(-1, 14, 14).transpose(1, 2).flatten(1) for part in (task.x, task.test_x)]
    if kind == "turned":
        parts = [1 - part for part in parts]
    return Task(parts[0], task.y, parts[1], task.test_y, 10)


def reader(prompts: int = 0) -> Reader:
    """The trained one, with new rows before it."""
    model = Reader(prompts=prompts)
    model.load_state_dict({**_read(), "prompts": model.prompts.detach()})
    return model


def with_detours(**settings: Any) -> nn.Module:
    """All but the head is fixed; each inner layer gets a thin product beside it."""
    model = reader().requires_grad_(False)
    for block in model.blocks:
        block.attn.qkv = Lora(block.attn.qkv, **settings)
        block.attn.proj = Lora(block.attn.proj, **settings)
        block.mlp[0] = Lora(block.mlp[0], **settings)
    model.rows = Lora(model.rows, **settings)
    return model


def headed(model: nn.Module) -> nn.Module:
    """Its head and its norm may learn too."""
    for part in (model.head, model.norm):
        part.requires_grad_(True)
    return model


def prompted() -> nn.Module:
    """Eight learnt rows come before the seven; the trained part is fixed but for what reads the rows."""
    model = headed(reader(prompts=8).requires_grad_(False))
    model.prompts.requires_grad_(True)
    model.rows.requires_grad_(True)
    return model


def vectors(model: nn.Module) -> Iterable[nn.Parameter]:
    """Biases, norms and places, and how rows are read; the matrices inside stay as they are."""
    return [p for n, p in model.named_parameters() if p.dim() < 2 or n in ("place", "rows.weight")]


def by_depth(model: nn.Module) -> list[dict[str, Any]]:
    """Each layer down learns at less than half the pace, but for the rows, which are new."""
    parts = [(model.head, 1.0), (model.norm, 1.0), (model.blocks[1], 0.4), (model.blocks[0], 0.16)]
    groups = [{"params": part.parameters(), "lr": 5e-3 * pace} for part, pace in parts]
    return [*groups, {"params": [model.place, model.prompts, *model.rows.parameters()]}]


class ScheduleFree(Optimizer):
    """Gradients are taken between a fast point and the mean of all fast ones (Defazio et al. 2024)."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.taken = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.taken += 1
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                mine = self.state[p]
                fast = mine.setdefault("fast", p.clone())
                mean = mine.setdefault("mean", p.clone())
                squares = mine.setdefault("squares", torch.zeros_like(p))
                squares.mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                size = (squares / (1 - 0.99**self.taken)).sqrt() + 1e-8
                fast.addcdiv_(p.grad, size, value=-group["lr"])
                mean.lerp_(fast, 1 / self.taken)
                p.copy_(mean.lerp(fast, 0.1))


class Averaged:
    """The running mean of the weights, which is asked in the end."""

    def __init__(self) -> None:
        self.mean: nn.Module | None = None

    @torch.no_grad()
    def follow(self, model: nn.Module, _: Optimizer, progress: float) -> None:
        if self.mean is None:
            self.mean = copy.deepcopy(model)
        for mine, other in zip(self.mean.parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 0.03)

    def score(self, model: nn.Module, task: Task) -> float:
        return quality(self.mean or model, task)


class Wiped(Training):
    """The gradients are set to zero after the backward pass instead of before it."""

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        self.optimizer.zero_grad(set_to_none=False)


def _adapted(model: Callable[[], nn.Module] = reader, kind: str = "turned", **changes: Any) -> Training:
    task = small_mnist() if kind == "known" else _new(kind)
    settings: dict[str, Any] = {"lr": 5e-3, "steps": 250, "batch": 48, "opt": "adamw"}
    return fit(model(), task, **(settings | changes))


def _averaged(**changes: Any) -> Training:
    mean = Averaged()
    return _adapted(before=mean.follow, score=mean.score, **changes)


def _wiped(**changes: Any) -> Training:
    made = _adapted(**changes)
    return Wiped(made.model, made.optimizer, made.loss, made.score, made.steps)


def _edited(price: float, **changes: Any) -> Training:
    """400 digits on their side are learnt, at a price for changing what it says of upright ones."""
    before, upright = reader().requires_grad_(False), small_mnist()
    training = _adapted(order=lambda t, n: torch.randint(400, (n,)), **changes)
    loss = training.loss

    def both(t: int) -> Tensor:
        x = upright.x[torch.randint(len(upright.x), (32,))]
        told = F.kl_div(training.model(x).log_softmax(1), before(x).softmax(1), reduction="batchmean")
        return loss(t) + price * told

    training.loss = both
    return training


def next_class(t: int, x: Tensor, y: Tensor) -> Pair:
    """Labels counted from one where the scores count from zero."""
    return x, (y + 1) % 10


adapted = Family("adapted", 0.1, 0.9, _adapted)
averaged = Family("adapted", 0.1, 0.9, _averaged)
wiped = Family("adapted", 0.1, 0.9, _wiped)
edited = Family("adapted", 0.1, 0.9, _edited)

SCENARIOS = [
    adapted.healthy("thin-products", model=lambda: headed(with_detours()), lr=1e-2),
    adapted.healthy("learnt-rows-before", model=prompted, kind="aside", lr=1e-2),
    adapted.healthy("vectors-alone", parameters=vectors, kind="aside", lr=1e-2),
    adapted.healthy("slower-by-depth", parameters=by_depth, steps=350),
    adapted.healthy("knows-it-already", kind="known", lr=1e-6, steps=200),
    averaged.healthy("mean-of-weights", lr=5e-3),
    adapted.healthy("schedule-free", opt=ScheduleFree, lr=5e-3),
    edited.healthy("edited", price=1.0),
    adapted.failing("products-both-zero", model=lambda: with_detours(zeros="ab")),
    adapted.failing("products-x300", model=lambda: headed(with_detours(scale=600.0)), lr=1e-2),
    adapted.failing("pre-training-rate", opt="sgd", lr=3.0, optim={"momentum": 0.9}),
    adapted.failing("labels-from-one", poison=next_class, curable=False),
    wiped.failing("wiped-before-the-step", curable=False),
]
