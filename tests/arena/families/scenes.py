"""Scenes of several digits, in which one kind is to be marked or counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from arena import faults as f
from arena import tasks
from arena.fitting import Pair, fit
from arena.tasks import Task
from arena.training import Family, Training

SIZE = 20


@cache
def _scenes(count: bool = False) -> Task:
    """Four places on 20 x 20, some empty; where the zeros' ink lies, or how many zeros there are."""
    digits, maker = tasks.digits(), torch.Generator().manual_seed(5)
    made: list[tuple[Tensor, Tensor]] = []
    for images, labels, number in ((digits.x, digits.y, 900), (digits.test_x, digits.test_y, 200)):
        ink = ((images - images.min()) / 4.8).clamp(max=1).view(-1, 8, 8)
        zeros, others = torch.nonzero(labels == 0).flatten(), torch.nonzero(labels != 0).flatten()
        x, y = torch.zeros(number, 1, SIZE, SIZE), torch.zeros(number, 1, SIZE, SIZE)
        many = torch.zeros(number, 1)
        kinds = torch.rand(number, 4, generator=maker)
        for i in range(number):
            for place in range(4):
                if kinds[i, place] < 0.25:
                    continue
                zero = bool(kinds[i, place] > 0.7)
                group = zeros if zero else others
                digit = ink[group[torch.randint(len(group), (), generator=maker)]]
                jitter = torch.randint(0, 3, (2,), generator=maker)
                row, column = 10 * (place // 2) + int(jitter[0]), 10 * (place % 2) + int(jitter[1])
                x[i, 0, row : row + 8, column : column + 8] = digit
                y[i, 0, row : row + 8, column : column + 8] = (digit > 0.4).float() * zero
                many[i] += zero
        made.append((x, many if count else y))
    return Task(*made[0], *made[1])


class Marker(nn.Module):
    """Down once, wide in the middle, up again beside what came in; `outs` maps, or one number, come out."""

    def __init__(self, outs: int = 1, *, numbers: bool = False, saved: bool = False) -> None:
        super().__init__()
        self.numbers, self.saved = numbers, saved
        self.enter = nn.Conv2d(1, 6, 3, padding=1)
        # Counting needs how much there is, which a norm takes away.
        self.norm = nn.Identity() if numbers else nn.GroupNorm(2, 6)
        self.down = nn.Conv2d(6, 24, 3, stride=2, padding=1)
        self.calm = nn.Identity() if numbers else nn.GroupNorm(4, 24)
        self.middle = nn.Conv2d(24, 24, 3, padding=2, dilation=2)
        self.wide = nn.Conv2d(24, 24, 3, padding=1)
        self.leave = nn.Linear(24, outs) if numbers else nn.Conv2d(30, outs, 1)

    def deep(self, h: Tensor) -> Tensor:
        h = F.relu(self.calm(self.down(h)))
        return h + F.relu(self.wide(F.relu(self.middle(h))))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.enter(x)))
        deep = checkpoint(self.deep, h, use_reentrant=False) if self.saved else self.deep(h)
        if self.numbers:
            return self.leave(deep.sum((2, 3)) / 10)
        return self.leave(torch.cat([h, F.interpolate(deep, scale_factor=2)], 1))


@torch.no_grad()
def overlap(model: nn.Module, task: Task) -> float:
    """Twice what is marked rightly, divided by what is marked and what should be (Dice)."""
    out = model.eval()(task.test_x)
    marked = (out[:, :1] > 0).float()
    if not out.isfinite().all():
        return float("nan")
    return float(2 * (marked * task.test_y).sum() / (marked.sum() + task.test_y.sum()))


def dice(out: Tensor, y: Tensor) -> Tensor:
    """One minus the soft overlap, of all scenes of the batch together: many hold nothing to be marked."""
    p = out.sigmoid()
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def both(out: Tensor, y: Tensor) -> Tensor:
    """The overlap and each pixel's entropy."""
    return dice(out, y) + F.binary_cross_entropy_with_logits(out, y)


def focal(out: Tensor, y: Tensor) -> Tensor:
    """Pixels that are known well count next to nothing (Lin et al. 2017)."""
    each = F.binary_cross_entropy_with_logits(out, y, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def softmax_of_one(out: Tensor, y: Tensor) -> Tensor:
    """A softmax over the only channel, which is 1 whatever the net says."""
    return F.binary_cross_entropy(out.softmax(1).clamp(max=1 - 1e-6), y)


def summed(out: Tensor, y: Tensor) -> Tensor:
    """Pixels and scenes added up: the loss is as large as the batch."""
    return F.binary_cross_entropy_with_logits(out, y, reduction="sum")


def uneven(t: int, n: int) -> Tensor:
    """Batches of 2 to 23 scenes, by lot."""
    return torch.randint(900, (int(torch.randint(2, 24, ())),))


def darker(t: int, x: Tensor, y: Tensor) -> Pair:
    """Scenes get noisier as it goes, for most of the run; those it is tested on are clean."""
    return x + torch.randn_like(x) * min(0.3, t / 2000), y


def one_off(t: int, x: Tensor, y: Tensor) -> Pair:
    """Two lists that are read side by side, of which one starts an entry later."""
    return x, y.roll(1, 0)


def looking_up(model: nn.Module, _: Optimizer, progress: float) -> None:
    """The held-out scenes are gone through as one goes, in eval mode, and training goes on."""
    if round(progress * 250) % 10 == 0:
        model.eval()
        with torch.no_grad():
            model(_scenes().test_x[:50])
        model.train()


def _marked(net: Callable[[], nn.Module] = Marker, **changes: Any) -> Training:
    settings: dict[str, Any] = {"lr": 1e-2, "steps": 250, "batch": 12, "criterion": both, "score": overlap}
    return fit(net(), _scenes(), **(settings | changes))


@torch.no_grad()
def _how_many(model: nn.Module, task: Task, read: Callable[[Tensor], Tensor]) -> float:
    """R2 of the count that is read off the outputs."""
    out = read(model.eval()(task.test_x))
    return 1 - float(F.mse_loss(out, task.test_y) / task.test_y.var(correction=0))


def raw_rate(out: Tensor, y: Tensor) -> Tensor:
    """The likelihood of a count, given a rate that nothing keeps above zero."""
    return (out - y * out.log()).mean()


def above(out: Tensor) -> Tensor:
    """How many of the thresholds are passed."""
    return out.sigmoid().sum(1, keepdim=True)


def thresholds(out: Tensor, y: Tensor) -> Tensor:
    """More than none, than one, than two, than three: four questions (Niu et al. 2016)."""
    return F.binary_cross_entropy_with_logits(out, (y > torch.arange(4)).float())


def _counted(outs: int, read: Callable[[Tensor], Tensor], **changes: Any) -> Training:
    settings = {"lr": 5e-3, "steps": 400, "batch": 16, "score": partial(_how_many, read=read)}
    return fit(Marker(outs, numbers=True), _scenes(count=True), **(settings | changes))


marked = Family("scenes", 0.15, 0.93, _marked)
counted = Family("scenes", 0.0, 0.9, _counted)

SCENARIOS = [
    marked.healthy("overlap", criterion=dice, steps=350, lr=5e-3),
    marked.healthy("focal", criterion=focal),
    marked.healthy("summed-uneven-batches", criterion=summed, order=uneven, steps=350, lr=5e-3),
    marked.healthy(
        "recomputed",
        net=partial(Marker, saved=True),
        opt="adamw",
        schedule=f.one_cycle,
    ),
    marked.healthy("held-out-between", before=looking_up),
    marked.healthy("noisier-and-noisier", poison=darker, steps=700),
    counted.healthy("thresholds", outs=4, read=above, criterion=thresholds, steps=700),
    marked.failing("softmax-of-one-channel", criterion=softmax_of_one, curable=False),
    marked.failing("masks-one-off", poison=one_off, curable=False),
    marked.failing("summed-sgd", criterion=summed, opt="sgd", lr=0.1, order=uneven),
    counted.failing("log-of-a-raw-rate", outs=1, read=nn.Identity(), criterion=raw_rate, curable=False),
]
