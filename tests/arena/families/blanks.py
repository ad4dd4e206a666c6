"""Letters blanked out of source text, to be filled in from both sides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import optimizer_of
from arena.training import Family, Training

BLANK, WIDE = tasks.VOCABULARY, 32
Pick = Callable[[Tensor, float], Tensor]
"""Which places of texts are to be told, at a progress of training."""


class Filler(nn.Module):
    """A transformer of one block that sees a text with blanks from both sides."""

    def __init__(self, outs: int = BLANK) -> None:
        super().__init__()
        self.embed = nn.Embedding(BLANK + 1, WIDE)
        self.near = nn.Conv1d(WIDE, WIDE, 5, padding=2)
        self.block = nets.Block(WIDE, post=False, causal=False)
        self.norm, self.head = nn.LayerNorm(WIDE), nn.Linear(WIDE, outs)
        nn.init.normal_(self.embed.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.near(h.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(self.block(h)))


def some(share: float) -> Pick:
    """Each place by lot."""
    return lambda x, _: torch.rand(x.shape) < share


few = some(0.15)


def fewer(x: Tensor, progress: float) -> Tensor:
    """From six in ten down to 15 percent."""
    return torch.rand(x.shape) < 0.15 + 0.45 * (1 - progress)


def stretches(x: Tensor, _: float) -> Tensor:
    """Two letters in a row."""
    begins = torch.rand(x.shape) < 0.09
    return begins | begins.roll(1, 1)


def blanked(x: Tensor, picked: Tensor) -> Tensor:
    """Eight in ten of what is picked are blanks, one another letter, and one is left as it is."""
    lot = torch.rand(x.shape)
    drawn = torch.where(lot < 0.8, BLANK, torch.where(lot < 0.9, torch.randint(BLANK, x.shape), x))
    return torch.where(picked, drawn, x)


def shown(x: Tensor, picked: Tensor) -> Tensor:
    """Nothing is blanked: what is asked can be read off."""
    return x


@cache
def _asked() -> tuple[Tensor, Tensor]:
    """Unseen texts, and the places that are asked of them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = tasks.letters().test_x[:400]
        return x, torch.rand(x.shape) < 0.15


@torch.no_grad()
def filled(model: nn.Module) -> float:
    """Minus the cross entropy of blanked letters."""
    x, asked = _asked()
    out = model.eval()(x.masked_fill(asked, BLANK))
    return -float(F.cross_entropy(out[asked], x[asked]))


def on_the_whole(out: Tensor, x: Tensor, picked: Tensor) -> Tensor:
    """The mean over all that is asked."""
    return F.cross_entropy(out[picked], x[picked])


def text_by_text(out: Tensor, x: Tensor, picked: Tensor) -> Tensor:
    """The mean of the texts' means: 0 / 0 for a text of which nothing is asked."""
    each = F.cross_entropy(out.transpose(1, 2), x, reduction="none")
    return ((each * picked).sum(1) / picked.sum(1)).mean()


def _filled(
    model: Callable[[], nn.Module] = Filler,
    *,
    pick: Pick = few,
    blank: Callable[[Tensor, Tensor], Tensor] = blanked,
    mean: Callable[[Tensor, Tensor, Tensor], Tensor] = on_the_whole,
    schedule: Callable[[float], float] | None = f.one_cycle,
    steps: int = 250,
    lr: float = 1e-2,
    opt: str = "adamw",
    **loop: Any,
) -> Training:
    """Texts are blanked here and there, anew each time."""
    net, texts = model(), tasks.letters().x
    optimizer = optimizer_of(opt, net.parameters(), lr)

    def loss(t: int) -> Tensor:
        x = texts[torch.randint(len(texts), (16,))]
        picked = pick(x, t / steps)
        return mean(net(blank(x, picked)), x, picked)

    scheduler = None if schedule is None else LambdaLR(optimizer, lambda t: schedule(t / steps))
    return Training(
        net, optimizer, loss, lambda: filled(net), steps, scheduler, validate=lambda: -filled(net), **loop
    )


@cache
def _practised() -> nn.Module:
    """What 350 steps left, made once with their own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        training = _filled(steps=350)
        training.run()
    return training.model


def practised() -> nn.Module:
    """A copy of it."""
    return copy.deepcopy(_practised())


@torch.no_grad()
def noticed(model: nn.Module) -> float:
    """How well unseen letters that were put in by lot are told from others, on average over both."""
    x, asked = _asked()
    put = x.flatten()[torch.arange(x.numel()) * 7919 % x.numel()].view(x.shape)
    false = asked & (put != x)
    out = model.eval()(torch.where(asked, put, x))[..., 0]
    if not out.isfinite().all():
        return float("nan")
    return float(0.5 * ((out[false] > 0).float().mean() + (out[~false] <= 0).float().mean()))


def _noticed(steps: int = 250) -> Training:
    """Letters are put in by lot, and each place is asked whether its letter is the right one (ELECTRA)."""
    net, texts = Filler(outs=1), tasks.letters().x
    optimizer = optimizer_of("adamw", net.parameters(), 1e-2)

    def loss(t: int) -> Tensor:
        x = texts[torch.randint(len(texts), (16,))]
        other = x.flatten()[torch.randperm(x.numel())]
        put = torch.where(torch.rand(x.shape) < 0.15, other.view(x.shape), x)
        right = (put != x).float()
        return F.binary_cross_entropy_with_logits(net(put)[..., 0], right, pos_weight=torch.tensor(5.0))

    scheduler = LambdaLR(optimizer, lambda t: f.one_cycle(t / steps))
    return Training(net, optimizer, loss, lambda: noticed(net), steps, scheduler)


filled_in = Family("blanks", -3.07, -2.02, _filled)
found_out = Family("blanks", 0.5, 0.76, _noticed)

SCENARIOS = [
    filled_in.healthy("fewer-and-fewer", pick=fewer),
    filled_in.healthy("two-in-a-row", pick=stretches, steps=300),
    filled_in.healthy("practised-lr-1e-5", model=practised, lr=1e-5, schedule=None),
    found_out.healthy("what-was-put-in"),
    filled_in.failing("letters-shown", blank=shown, curable=False),
    filled_in.failing("text-by-text", mean=text_by_text, pick=some(0.18)),
    filled_in.failing("lr-03", lr=0.3, schedule=None),
    filled_in.failing("sgd-lr-of-003", opt="sgd", lr=0.03),
]
