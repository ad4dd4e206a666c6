"""Strips of up to three digits that are read from left to right: alignment by itself, or letter by letter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from arena import faults as f
from arena import tasks
from arena.fitting import optimizer_of
from arena.tasks import Task
from arena.training import Family, Training

HEIGHT, WIDTH, MOST = 8, 28, 3
END, BEGIN, BLANK, WIDE = 10, 11, 10, 32


class Strips(NamedTuple):
    """Pictures of 8 x 28 as columns, the digits on them (10 where there is none), how many there are."""

    x: Tensor
    y: Tensor
    number: Tensor


@cache
def _digits() -> Task:
    return tasks.digits()


def strips(count: int, most: int = MOST, test: bool = False) -> Strips:
    """Digits side by side, a little apart; columns without one are as dark as paper."""
    images, labels = (_digits().test_x, _digits().test_y) if test else (_digits().x, _digits().y)
    index = torch.randint(len(images), (count, MOST))
    number = torch.randint(1, most + 1, (count,))
    there = torch.arange(MOST) < number[:, None]
    x = torch.full((count, HEIGHT, WIDTH), float(images.min()))
    rows, gaps = torch.arange(count), torch.randint(2, (count, MOST))
    left = gaps.cumsum(1) + 8 * torch.arange(MOST)
    for place in range(MOST):
        mine = rows[there[:, place]]
        columns = left[mine, place, None] + torch.arange(8)
        x[mine[:, None], :, columns] = images[index[mine, place]].view(-1, 8, 8).transpose(1, 2)
    return Strips(x, labels[index].masked_fill(~there, END), number)


class Eye(nn.Module):
    """Columns to 14 frames by convolutions, the last of which may be `rounds` short steps of a flow."""

    def __init__(self, rounds: int = 0) -> None:
        super().__init__()
        self.wide = nn.Conv1d(HEIGHT, WIDE, 5, padding=2)
        self.narrow = nn.Conv1d(WIDE, WIDE, 4, stride=2, padding=1)
        self.near, self.rounds = nn.Conv1d(WIDE, WIDE, 3, padding=1), rounds
        self.norm = nn.LayerNorm(WIDE)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.narrow(F.gelu(self.wide(x))))
        if not self.rounds:
            h = F.gelu(self.near(h))
        for _ in range(self.rounds):
            h = h + torch.tanh(self.near(h)) / self.rounds
        return self.norm(h.transpose(1, 2))


class Aligned(nn.Module):
    """Scores of each digit and of a blank at each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.head = Eye(), nn.Linear(WIDE, BLANK + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.eye(x))

    def read(self, x: Tensor) -> list[list[int]]:
        """The best frame by frame; what repeats counts once, and blanks do not count."""
        best = self(x).argmax(2)
        fresh = (best != BLANK) & (best != F.pad(best, (1, 0), value=BLANK)[:, :-1])
        return [row[mask].tolist() for row, mask in zip(best, fresh, strict=True)]


class Told(nn.Module):
    """A GRU that looks at frames and says one digit after the other (Bahdanau et al. 2015)."""

    def __init__(self, rounds: int = 0) -> None:
        super().__init__()
        self.eye, self.embed = Eye(rounds), nn.Embedding(BEGIN + 1, WIDE)
        self.place = nn.Parameter(torch.randn(WIDTH // 2, WIDE) * 0.3)
        self.cell, self.ask = nn.GRUCell(2 * WIDE, WIDE), nn.Linear(WIDE, WIDE)
        self.head = nn.Linear(2 * WIDE, END + 1)

    def forward(self, x: Tensor, heard: Tensor, own: float = 0.0) -> Tensor:
        """Scores after each of `heard`, in place of which the net's own digits come in a share `own`."""
        frames = self.eye(x) + self.place
        state = seen = frames.new_zeros(len(x), WIDE)
        out: list[Tensor] = []
        for right in heard.unbind(1):
            said = out[-1].detach().argmax(1) if out else right
            word = self.embed(torch.where(torch.rand(len(x)) < own, said, right))
            state = self.cell(torch.cat([word, seen], 1), state)
            weight = (frames @ self.ask(state)[:, :, None] / WIDE**0.5).softmax(1)
            seen = (weight * frames).sum(1)
            out.append(self.head(torch.cat([state, seen], 1)))
        return torch.stack(out, 1)

    def read(self, x: Tensor) -> list[list[int]]:
        """What it says by itself until it says that it ends."""
        said = self(x, torch.full((len(x), MOST + 1), BEGIN), own=1.0).argmax(2).tolist()
        return [row[: row.index(END)] if END in row else row for row in said]


def apart(one: list[int], other: list[int]) -> int:
    """How many digits must be changed, put in or left out (Levenshtein 1966)."""
    costs = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        last, costs[0] = costs[0], i
        for j, their in enumerate(other, 1):
            last, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, last + (mine != their))
    return costs[-1]


@cache
def _asked() -> Strips:
    """Unseen strips, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return strips(240, test=True)


@torch.no_grad()
def read(model: nn.Module) -> float:
    """The share of digits that are read rightly."""
    model.eval()
    x, y, number = _asked()
    if not all(p.isfinite().all() for p in model.parameters()):
        return float("nan")
    right = [row[:n] for row, n in zip(y.tolist(), number.tolist(), strict=True)]
    wrong = sum(min(apart(mine, their), len(their)) for mine, their in zip(model.read(x), right, strict=True))
    return 1 - wrong / float(number.sum())


def _aligned(
    *,
    grows: bool = False,
    every: int = 1,
    batch: int = 16,
    steps: int = 250,
    lr: float = 5e-3,
    **loop: Any,
) -> Training:
    """All alignments of the digits with the frames count together (CTC); `every` leaves out frames."""
    model = Aligned()

    def loss(t: int) -> Tensor:
        x, y, number = strips(batch, 1 + 3 * t // steps if grows else MOST)
        chances = model(x)[:, ::every].log_softmax(2).transpose(0, 1)
        return F.ctc_loss(chances, y, torch.full((batch,), len(chances)), number, blank=BLANK)

    return Training(
        model, optimizer_of("adam", model.parameters(), lr), loss, lambda: read(model), steps, **loop
    )


def _told(
    model: Callable[[], nn.Module] = Told,
    *,
    own: Callable[[float], float] = lambda p: p,
    unshifted: bool = False,
    steps: int = 180,
    lr: float = 8e-3,
    schedule: Callable[[float], float] | None = None,
    **loop: Any,
) -> Training:
    """Each digit after the right ones, or in a share `own` of the cases after what it said itself."""
    net = model()
    optimizer = optimizer_of("adam", net.parameters(), lr)

    def loss(t: int) -> Tensor:
        x, y, _ = strips(16)
        y = F.pad(y, (0, 1), value=END)
        heard = y if unshifted else F.pad(y, (1, 0), value=BEGIN)[:, :-1]
        return F.cross_entropy(net(x, heard, own(t / steps)).flatten(0, 1), y.flatten())

    scheduler = None
    if schedule is not None:
        scheduler = LambdaLR(optimizer, lambda t: schedule(t / steps))
    return Training(net, optimizer, loss, lambda: read(net), steps, scheduler, **loop)


def right_ones(_: float) -> float:
    """It never goes on from what it said itself."""
    return 0.0


def own_ones(_: float) -> float:
    """It always goes on from what it said itself."""
    return 1.0


@cache
def _taught() -> nn.Module:
    """What 180 steps after the right digits left, made once with their own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        training = _told(own=right_ones)
        training.run()
    return training.model


def taught() -> nn.Module:
    """A copy of it."""
    return copy.deepcopy(_taught())


aligned = Family("strips", 0.1, 0.95, _aligned)
told = Family("strips", 0.1, 0.95, _told)

SCENARIOS = [
    aligned.healthy("aligned-by-four", batch=4, lr=3e-3, steps=400),
    aligned.healthy("longer-and-longer", grows=True, steps=350),
    told.healthy("own-digits-more-and-more"),
    told.healthy(
        "restarts-of-a-flow", model=lambda: Told(rounds=4), schedule=f.warm_restarts, lr=1e-2, steps=220
    ),
    told.healthy("own-digits-at-last", model=taught, own=own_ones, lr=1e-5, steps=200),
    aligned.failing("too-few-frames", every=4, curable=False),
    told.failing("hears-what-it-should-say", own=right_ones, unshifted=True, curable=False),
    told.failing("lr-03", own=right_ones, lr=0.3),
]
