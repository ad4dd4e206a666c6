"""Digits freed of noise of any strength: nets that are told how noisy a digit is, and find the noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import Pair, fit
from arena.tasks import Task
from arena.training import Family, Training


class Layered(nn.Module):
    """A noisy digit and the strength of the noise in, the noise out: residual layers steered by strength."""

    def __init__(self, width: int = 64, blocks: int = 3, rounded: bool = False) -> None:
        super().__init__()
        self.rounded = rounded
        self.enter = nn.Linear(64, width)
        self.strength = nets.mlp((8, 32, 2 * width * blocks), nn.SiLU)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(nets.mlp((width, 2 * width, width), nn.SiLU) for _ in range(blocks))
        self.leave = nn.Linear(width, 64)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (n, 65): the last is the strength, 0 to 1."""
        turns = x[:, 64:] * torch.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
        knobs = self.strength(torch.cat([turns.sin(), turns.cos()], 1)).chunk(2 * len(self.blocks), 1)
        h = self.enter(x[:, :64])
        for i, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            inside = block(norm(h) * (1 + knobs[2 * i]) + knobs[2 * i + 1])
            h = h + (eighths(inside) if self.rounded else inside)
        return self.leave(h)


def eighths(x: Tensor) -> Tensor:
    """Rounded to eighths, as a net for small machines would; the gradient passes straight through."""
    return x + ((8 * x).round() / 8 - x).detach()


def noisy(x: Tensor, strength: Tensor) -> Pair:
    """Digits behind noise, by a cosine of the strength, and the noise alone."""
    noise = torch.randn_like(x)
    angle = strength * torch.pi / 2
    return torch.cat([angle.cos() * x + angle.sin() * noise, strength], 1), noise


def blurring(low: float = 0.05, high: float = 0.95) -> Callable[[int, Tensor, Tensor], Pair]:
    """Each digit gets a strength by lot."""
    return lambda t, x, y: noisy(x, low + (high - low) * torch.rand(len(x), 1))


def unrelated(t: int, x: Tensor, y: Tensor) -> Pair:
    """The noise that is asked for was never added."""
    return blurring()(t, x, y)[0], torch.randn_like(x)


def from_hard_to_easy(t: int, x: Tensor, y: Tensor) -> Pair:
    """First much noise, in which the noise is easily seen; less and less: the loss rises as it goes."""
    return blurring(max(0.05, 0.7 - 0.65 * t / 250))(t, x, y)


@cache
def _hidden() -> Task:
    """The digits; to test, each once behind noise of a fixed draw."""
    digits = tasks.digits()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        x, noise = noisy(digits.test_x, 0.1 + 0.8 * torch.rand(len(digits.test_x), 1))
    return Task(digits.x, digits.x, x, noise)


def _diffusion(rounded: bool = False, **changes: Any) -> Training:
    settings = {"lr": 3e-3, "steps": 300, "poison": blurring()}
    return fit(Layered(rounded=rounded), _hidden(), **(settings | changes))


class Signs(Optimizer):
    """Steps of one size, along the sign of the averaged gradient (signum, Bernstein et al. 2018)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(mean.lerp_(p.grad, 0.1).sign(), alpha=group["lr"])


class Followed(nn.Module):
    """A net and its running average, which is asked in the end and agreed with on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Layered()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        taught = self.teacher(x)
        return torch.stack([self.student(x), taught]) if self.training else taught


@torch.no_grad()
def follow(model: nn.Module, _: Optimizer, progress: float) -> None:
    """The teacher goes a twentieth of the way to its student."""
    for mine, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        mine.lerp_(other, 0.05)


def agreeing(out: Tensor, y: Tensor) -> Tensor:
    """Right, and near to what the teacher says."""
    return F.mse_loss(out[0], y) + 0.5 * F.mse_loss(out[0], out[1])


def unfreezing(model: nn.Module, _: Optimizer, progress: float) -> None:
    """The way out learns first, then one part more after each sixth, from the top down."""
    parts = [model.leave, model.strength, *reversed(list(model.blocks)), model.enter]
    for number, part in enumerate(parts):
        part.requires_grad_(progress >= max(0, number - 1) / 8)


def swelling(t: int, n: int) -> Tensor:
    """Batches from 4 to 160."""
    return torch.randint(1400, (4 + t // 2,))


def _followed(**changes: Any) -> Training:
    settings = {"lr": 3e-3, "steps": 300, "poison": blurring(), "criterion": agreeing, "before": follow}
    return fit(Followed(), _hidden(), parameters=lambda m: m.student.parameters(), **(settings | changes))


diffusion = Family("diffusion", 0.0, 0.72, _diffusion)
followed = Family("diffusion", 0.0, 0.72, _followed)

SCENARIOS = [
    diffusion.healthy("plain"),
    diffusion.healthy("eighths", rounded=True),
    diffusion.healthy("strong-to-faint", poison=from_hard_to_easy, steps=400),
    diffusion.healthy("offset-10000", criterion=lambda out, y: F.mse_loss(out, y) + 1e4),
    diffusion.healthy("signs", opt=Signs, lr=1e-3, schedule=f.warm_restarts),
    diffusion.healthy("unfreezing", before=unfreezing, steps=400),
    diffusion.healthy("batches-grow", order=swelling),
    diffusion.healthy("adafactor", opt=torch.optim.Adafactor, lr=0.3),
    followed.healthy("teacher-follows"),
    diffusion.failing("signs-lr-03", opt=Signs, lr=0.3),
    diffusion.failing("other-noise", poison=unrelated, curable=False),
    diffusion.failing("way-out-frozen", prepare=f.freeze("leave"), curable=False),
    diffusion.failing("sgd-lr-30", opt="sgd", lr=30.0),
]
