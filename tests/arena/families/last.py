"""Nets that hold a photograph as a function of place, and linear recurrences over the pixels of a digit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.optim import Optimizer

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import Pair, fit
from arena.tasks import Task
from arena.training import Family, Training

NAN = float("nan")


class Sine(nn.Module):
    """A sine of so many turns, as in SIREN (Sitzmann et al. 2020, arXiv 2006.09661)."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.speed = speed

    def forward(self, x: Tensor) -> Tensor:
        return (self.speed * x).sin()


class Waves(nn.Module):
    """Sines and cosines of a place at some frequencies (Tancik et al. 2020); none above `open`."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.open = float(bands)
        self.register_buffer("turns", math.pi * 2.0 ** torch.arange(bands))

    def forward(self, x: Tensor) -> Tensor:
        heard = (self.open - torch.arange(len(self.turns))).clamp(0, 1)
        angles = x[:, :, None] * self.turns
        return torch.cat([angles.sin() * heard, angles.cos() * heard], 2).flatten(1)


def siren(speed: float = 10.0, width: int = 48) -> nn.Module:
    """Three layers of sines, initialised as its authors say."""
    widths = (2, width, width, width)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        linear = nn.Linear(i, o)
        bound = 1 / i if i == 2 else math.sqrt(6 / i) / speed
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine(speed)]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def waves(bands: int = 4) -> nn.Module:
    """Waves of the place, then two ReLU layers."""
    return nn.Sequential(Waves(bands), *nets.mlp((4 * bands, 64, 64, 3)))


@cache
def _flower(pixels: bool = False) -> Task:
    """A photograph at 40 x 60: place to colour, both in -1..1; or the place counted in pixels."""
    image = np.asarray(load_sample_image("flower.jpg"), dtype=np.float32)[13:413, 20:620]
    small = image.reshape(40, 10, 60, 10, 3).mean((1, 3))
    high, wide = small.shape[:2]
    if pixels:
        rows, columns = torch.arange(high).float(), torch.arange(wide).float()
    else:
        rows, columns = torch.linspace(-1, 1, high), torch.linspace(-1, 1, wide)
    places = torch.cartesian_prod(rows, columns)
    return tasks.split(places, torch.from_numpy(small / 127.5 - 1).view(-1, 3), 0)


def _photo(
    model: Callable[[], nn.Module] = siren,
    pixels: bool = False,
    last: nn.Module | None = None,
    **changes: Any,
) -> Training:
    net = model() if last is None else nn.Sequential(*model(), last)
    return fit(net, _flower(pixels), **({"lr": 2e-3, "steps": 300, "batch": 128} | changes))


def opening(model: nn.Module, _: Optimizer, progress: float) -> None:
    """From coarse to fine: the frequencies are let in one after the other."""
    model[0].open = 1.0 + 6.0 * progress


def transparent(t: int, x: Tensor, y: Tensor) -> Pair:
    """Colours divided by an opacity that is nothing here and there from step 90 on."""
    if t < 90:
        return x, y
    opacity = (torch.rand(len(y), 1) > 0.02).float()
    return x, y * opacity / opacity


class Scan(nn.Module):
    """A gated diagonal linear recurrence along a sequence, behind a norm, beside a skip."""

    def __init__(self, width: int, slow: float) -> None:
        super().__init__()
        self.norm, self.enter = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.decay = nn.Parameter(torch.linspace(0.5, slow, width))
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """What each place sends on weakens by `decay` a step."""
        value, door = self.enter(self.norm(x)).chunk(2, -1)
        steps = torch.arange(x.shape[1])
        ago = steps[:, None] - steps[None]
        kernel = torch.where(ago[..., None] >= 0, self.decay ** ago.clamp(min=0)[..., None], 0.0)
        state = torch.einsum("tsw,bsw->btw", kernel, value)
        return x + self.leave(state * F.silu(door))


class Reader(nn.Module):
    """A digit read four pixels at a time through two recurrences; what is known at its end is classified."""

    def __init__(self, slow: float = 0.95, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Linear(4, width)
        self.scans = nn.Sequential(Scan(width, slow), Scan(width, slow))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of 10 classes."""
        return self.head(self.norm(self.scans(self.enter(x.view(len(x), -1, 4)))[:, -1]))


def _scan(slow: float = 0.95, **changes: Any) -> Training:
    return fit(Reader(slow), tasks.digits(), **({"lr": 4e-3, "steps": 240, "batch": 32} | changes))


def focal(out: Tensor, y: Tensor) -> Tensor:
    """The entropy of what is known already counts little (Lin et al. 2017)."""
    each = F.cross_entropy(out, y, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def capped(out: Tensor, y: Tensor) -> Tensor:
    """Logits held between -5 and 5 by a tanh."""
    return F.cross_entropy(5 * (out / 5).tanh(), y)


def undecided(out: Tensor, y: Tensor) -> Tensor:
    """Being unsure is paid five times as much as being right."""
    chances = out.log_softmax(-1)
    return F.nll_loss(chances, y) + 5 * (chances.exp() * chances).sum(-1).mean()


def clearing(t: int, x: Tensor, y: Tensor) -> Pair:
    """Noise that lifts over the first 200 steps."""
    return x + 2.0 * max(0.0, 1 - t / 200) * torch.randn_like(x), y


def recurrence_last(model: nn.Module, _: Optimizer, progress: float) -> None:
    """Only the head learns for the first fifth, then all."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(progress >= 0.2 or "head" in name)


@torch.no_grad()
def shut(model: nn.Module) -> None:
    """The head sees a last place that nothing reaches: doors far below zero, and a dark pixel."""
    for scan in model.scans:
        scan.enter.bias[len(scan.decay) :].fill_(-60.0)


photo = Family("photo", 0.0, 0.85, _photo)
scan = Family("scan", 0.1, 0.95, _scan)

SCENARIOS = [
    photo.healthy("plain"),
    photo.healthy("waves-adamw", model=waves, opt="adamw", lr=5e-3),
    photo.healthy("coarse-to-fine", model=lambda: waves(6), before=opening, lr=5e-3, steps=400),
    photo.healthy("absolute-errors", criterion=F.l1_loss, schedule=f.one_cycle, lr=5e-3),
    photo.healthy("batch-8", batch=8, lr=1e-3, steps=600),
    photo.failing("pixels-as-places", pixels=True, steps=400),
    # At the best of nine rates from 2e-6 to 2 and eleven paces from 1e-5 to 0.1, initialised anew or not, it
    # comes to 0.49: between two pixels lie several turns of a sine.
    photo.failing("sine-x100", model=lambda: siren(1000.0), steps=400, curable=False),
    photo.failing("other-pixels", poison=lambda t, x, y: (x, y[torch.randperm(len(y))]), curable=False),
    photo.failing("sgd-timid", opt="sgd", lr=1e-4, model=waves),
    photo.failing("adam-lr-1", lr=1.0, model=waves),
    photo.failing("opacity-of-nothing", poison=transparent),
    scan.healthy("plain"),
    scan.healthy("focal", criterion=focal),
    scan.healthy("capped", criterion=capped, opt=torch.optim.Adamax, lr=1e-2),
    scan.healthy("noise-lifts", poison=clearing, steps=300),
    scan.healthy("head-first", before=recurrence_last, steps=300),
    scan.failing("grows-with-time", slow=1.8, opt="sgd", lr=0.1, steps=300, batch=64),
    scan.failing("doors-shut", prepare=shut, lr=1e-4),
    scan.failing("lr-x250", lr=1.0),
    scan.failing("unsure-is-paid", criterion=undecided, curable=False),
    scan.failing("decay-60", opt="adamw", optim={"weight_decay": 60.0}, curable=False),
    scan.failing("sgd-clipped-to-nothing", opt="sgd", lr=0.1, clip=1e-3, curable=False),
]
