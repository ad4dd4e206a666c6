"""A dial to be turned to the class of a digit that is seen: learning from rewards, step by step."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena import tasks
from arena.families import nets
from arena.fitting import optimizer_of
from arena.tasks import Task
from arena.training import Family, Training

CLASSES, MOVES, LENGTH = 5, 3, 5


@cache
def _seen() -> Task:
    """The digits from 0 to 4."""
    task = tasks.digits()
    mine, asked = task.y < CLASSES, task.test_y < CLASSES
    return Task(task.x[mine], task.y[mine], task.test_x[asked], task.test_y[asked], CLASSES)


def seen(images: Tensor, dial: Tensor) -> Tensor:
    """What the player sees: the digit, and where the dial stands."""
    return torch.cat([images, 3.0 * F.one_hot(dial, CLASSES)], 1)


class Dials:
    """Many dials at once; a move turns one left, leaves it or turns it right; after five moves it is new."""

    def __init__(self, number: int, reward: float = 1.0) -> None:
        self.reward, self.number = reward, number
        self.clock = torch.arange(number) % LENGTH
        self.picture, self.dial = self.fresh()

    def fresh(self) -> tuple[Tensor, Tensor]:
        """A new digit and a new place for each."""
        return torch.randint(len(_seen().x), (self.number,)), torch.randint(CLASSES, (self.number,))

    def look(self) -> Tensor:
        """What is seen of each."""
        return seen(_seen().x[self.picture], self.dial)

    def turn(self, move: Tensor) -> tuple[Tensor, Tensor]:
        """What it pays, 1 at the right place and less with the distance, and where it was the last move."""
        self.dial = (self.dial + move - 1) % CLASSES
        away = (self.dial - _seen().y[self.picture]) % CLASSES
        paid = self.reward * (1 - torch.minimum(away, CLASSES - away).float())
        self.clock = self.clock + 1
        done = self.clock == LENGTH
        picture, dial = self.fresh()
        self.picture, self.dial = torch.where(done, picture, self.picture), torch.where(done, dial, self.dial)
        self.clock = torch.where(done, 0, self.clock)
        return paid, done


@torch.no_grad()
def arrived(model: nn.Module) -> float:
    """The share of unseen digits whose dial is right after three moves, from each place."""
    model.eval()
    task = _seen()
    images = task.test_x.repeat_interleave(CLASSES, 0)
    dial = torch.arange(CLASSES).repeat(len(task.test_x))
    for _ in range(3):
        out = model(seen(images, dial))[:, :MOVES]
        if not out.isfinite().all():
            return float("nan")
        dial = (dial + out.argmax(1) - 1) % CLASSES
    return float((dial == task.test_y.repeat_interleave(CLASSES)).float().mean())


class Values(nn.Module):
    """The worth of each move; with `duel` as the worth of the place and what each move adds to it."""

    def __init__(self, duel: bool = False) -> None:
        super().__init__()
        self.body, self.act = nets.mlp((64 + CLASSES, 96, 64)), nn.ReLU()
        self.moves, self.place = nn.Linear(64, MOVES), nn.Linear(64, 1) if duel else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.body(x))
        moves = self.moves(h)
        return moves if self.place is None else self.place(h) + moves - moves.mean(1, keepdim=True)


class Memory:
    """The last 2,000 moves, overwritten in turn."""

    def __init__(self, size: int = 2000) -> None:
        self.rows: list[Tensor] = []
        self.size = size

    def add(self, *columns: Tensor) -> None:
        row = [column.detach() for column in columns]
        self.rows = [torch.cat(pair)[-self.size :] for pair in zip(self.rows or row, row, strict=True)]

    def draw(self, number: int) -> list[Tensor]:
        index = torch.randint(len(self.rows[0]), (number,))
        return [column[index] for column in self.rows]


def _values(
    *,
    gamma: float = 0.8,
    double: bool = False,
    duel: bool = False,
    soft: float = 0.0,
    ends: bool = True,
    misplaced: bool = False,
    reward: float = 1.0,
    huber: bool = True,
    steps: int = 600,
    lr: float = 1e-3,
    opt: str = "adam",
    **loop: Any,
) -> Training:
    """Q-learning from a memory, towards a copy that is renewed each 50 steps, or bit by bit (`soft`)."""
    model = Values(duel)
    target = copy.deepcopy(model).requires_grad_(False)
    dials, memory = Dials(32, reward), Memory()
    metrics: dict[str, float] = {}
    optimizer = optimizer_of(opt, model.parameters(), lr)

    @torch.no_grad()
    def play(t: int) -> None:
        before = dials.look()
        free = torch.rand(dials.number) < max(0.1, 1 - 2 * t / steps)
        move = torch.where(free, torch.randint(MOVES, (dials.number,)), model(before).argmax(1))
        paid, done = dials.turn(move)
        metrics["reward"] = float(paid.mean())
        memory.add(before, move, paid.roll(1) if misplaced else paid, done, dials.look())
        if soft or t % 50 == 0:
            for mine, other in zip(target.parameters(), model.parameters(), strict=True):
                mine.lerp_(other, soft or 1.0)

    def loss(t: int) -> Tensor:
        before, move, paid, done, after = memory.draw(64)
        with torch.no_grad():
            ahead = target(after)
            best = model(after).argmax(1, keepdim=True) if double else ahead.argmax(1, keepdim=True)
            worth = paid + gamma * ahead.gather(1, best)[:, 0] * (~done if ends else 1)
        told = model(before).gather(1, move[:, None])[:, 0]
        return F.huber_loss(told, worth) if huber else F.mse_loss(told, worth)

    more = {"before": play, "metrics": metrics, "kept": {"target": target}}
    return Training(model, optimizer, loss, lambda: arrived(model), steps, **more, **loop)


class Player(nn.Module):
    """The chances of each move, and what the place is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = nets.mlp((64 + CLASSES, 96, 64)), nn.ReLU()
        self.moves, self.worth = nn.Linear(64, MOVES), nn.Linear(64, 1)
        nn.init.normal_(self.moves.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.body(x))
        return torch.cat([self.moves(h), self.worth(h)], 1)


class Rollout:
    """Five moves of each dial with the player as it is, and how much better than thought each turned out."""

    def __init__(self, dials: Dials, model: nn.Module, gamma: float) -> None:
        seen_, moves, paid, ends, worth = [], [], [], [], []
        with torch.no_grad():
            for _ in range(LENGTH):
                before = dials.look()
                out = model(before)
                move = torch.multinomial(out[:, :MOVES].softmax(1), 1)[:, 0]
                seen_.append(before)
                one, done = dials.turn(move)
                moves.append(move), paid.append(one), ends.append(done), worth.append(out[:, MOVES])
            ahead = model(dials.look())[:, MOVES]
            returns: list[Tensor] = []
            for one, done in zip(reversed(paid), reversed(ends), strict=True):
                ahead = one + gamma * ahead * ~done
                returns.insert(0, ahead)
            self.seen, self.moves = torch.cat(seen_), torch.cat(moves)
            self.returns = torch.cat(returns)
            self.paid = float(torch.cat(paid).mean())
            self.gain = self.returns - torch.cat(worth)
            self.chance = model(self.seen)[:, :MOVES].log_softmax(1).gather(1, self.moves[:, None])[:, 0]


def _acted(
    *,
    epochs: int = 1,
    sign: float = 1.0,
    reward: float = 1.0,
    judge: float = 0.5,
    steps: int = 350,
    lr: float = 3e-3,
    **loop: Any,
) -> Training:
    """Actor and critic in one net; with several `epochs` on each rollout by the clipped ratio (PPO)."""
    model, dials = Player(), Dials(32, reward)
    rollout: list[Rollout] = []
    metrics: dict[str, float] = {}

    def loss(t: int) -> Tensor:
        if t % epochs == 0:
            rollout[:] = [Rollout(dials, model, 0.8)]
            metrics["reward"] = rollout[0].paid
        (now,) = rollout
        index = torch.randperm(len(now.moves))[: len(now.moves) // (2 if epochs > 1 else 1)]
        gain = now.gain[index] * sign
        gain = (gain - gain.mean()) / (gain.std() + 1e-6)
        out = model(now.seen[index])
        chances = out[:, :MOVES].log_softmax(1)
        ratio = (chances.gather(1, now.moves[index][:, None])[:, 0] - now.chance[index]).exp()
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        entropy = -(chances.exp() * chances).sum(1).mean()
        return policy + judge * F.mse_loss(out[:, MOVES], now.returns[index]) - 0.01 * entropy

    optimizer = optimizer_of("adam", model.parameters(), lr)
    return Training(model, optimizer, loss, lambda: arrived(model), steps, metrics=metrics, **loop)


valued = Family("dials", 0.2, 0.97, _values)
acted = Family("dials", 0.2, 0.97, _acted)

SCENARIOS = [
    valued.healthy("copy-renewed"),
    valued.healthy("two-opinions", double=True, duel=True),
    valued.healthy("far-sighted-no-ends", ends=False, gamma=0.95, soft=0.05, steps=800),
    valued.healthy("rewards-of-20-clip", reward=20.0, huber=False, clip=10.0, lr=3e-3),
    acted.healthy("actor-critic"),
    acted.healthy("clipped-ratio", epochs=8, steps=600),
    acted.healthy("rewards-of-100", reward=100.0, judge=1e-4),
    valued.failing("memory-misplaced", misplaced=True, curable=False),
    valued.failing("rewards-of-1000-sgd", reward=1000.0, huber=False, opt="sgd", lr=0.01),
    acted.failing("gain-negated", sign=-1.0, curable=False),
    acted.failing("clipped-ratio-lr-03", epochs=8, lr=0.3, steps=600),
]
