"""What to do for patients and wines, and how to walk to a digit: bandits, imitation, old logs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena import tasks
from arena.families import nets
from arena.fitting import fit, optimizer_of
from arena.tasks import Task
from arena.training import Family, Training

FIELD, PICTURE, MOVES, WALK = 10, 8, 5, 16
STEPS = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])


@torch.no_grad()
def served(model: nn.Module, task: Task) -> float:
    """The share of each class that is served rightly, on average over the classes."""
    out = model.eval()(task.test_x)
    if not out.isfinite().all():
        return float("nan")
    right = (out.argmax(1) == task.test_y).float()
    return float(torch.stack([right[task.test_y == c].mean() for c in range(task.classes)]).mean())


def met(task: Task, number: int) -> tuple[Tensor, Tensor]:
    """So many cases, one after the other."""
    index = torch.randint(len(task.x), (number,))
    return task.x[index], task.y[index]


def pays(arm: Tensor, y: Tensor, noise: float = 0.3) -> Tensor:
    """1 for the right arm and 0 for another, told roughly."""
    return (arm == y).float() + noise * torch.randn(len(y))


def now_and_then(out: Tensor, progress: float) -> Tensor:
    """The best arm, or any other in less and less of the cases."""
    free = torch.rand(len(out)) < 1 - 0.95 * progress
    return torch.where(free, torch.randint(out.shape[1], (len(out),)), out.argmax(1))


def as_it_seems(out: Tensor, _: float) -> Tensor:
    """The best arm as one net out of all that dropout makes sees it (Thompson 1933)."""
    return out.argmax(1)


def _valued(
    table: str,
    pick: Callable[[Tensor, float], Tensor] = now_and_then,
    *,
    drop: float = 0.0,
    misplaced: bool = False,
    steps: int = 400,
    lr: float = 3e-3,
    **loop: Any,
) -> Training:
    """Sixteen cases a step; what the chosen arm paid is all that is learnt, from all cases so far."""
    task = tasks.table(table)
    model = nets.mlp((task.x.shape[1], 48, 48, task.classes), drop=drop)
    logs: list[tuple[Tensor, Tensor, Tensor]] = []
    metrics: dict[str, float] = {}

    def serve(t: int) -> None:
        x, y = met(task, 16)
        with torch.no_grad():
            arm = pick(model(x), t / steps)
        paid = pays(arm, y)
        metrics["reward"] = float(paid.mean())
        logs.append((x, arm, paid.roll(1) if misplaced else paid))

    def loss(t: int) -> Tensor:
        some = [logs[i] for i in torch.randint(len(logs), (4,))]
        x, arm, paid = (torch.cat(column) for column in zip(*some, strict=True))
        return F.mse_loss(model(x).gather(1, arm[:, None])[:, 0], paid)

    optimizer = optimizer_of("adam", model.parameters(), lr)
    more = {"before": serve, "metrics": metrics}
    return Training(model, optimizer, loss, lambda: served(model, task), steps, **more, **loop)


def _rewarded(table: str, *, sign: float = 1.0, steps: int = 500, lr: float = 3e-3, **loop: Any) -> Training:
    """REINFORCE, 16 cases a step, against the moving mean of the rewards (Williams 1992)."""
    task = tasks.table(table)
    model = nets.mlp((task.x.shape[1], 48, task.classes), nn.Tanh)
    usual = torch.zeros(())
    metrics: dict[str, float] = {}

    def loss(t: int) -> Tensor:
        x, y = met(task, 16)
        chances = model(x).log_softmax(1)
        arm = torch.multinomial(chances.detach().exp(), 1)[:, 0]
        paid = pays(arm, y)
        metrics["reward"] = float(paid.mean())
        paid = sign * paid
        gain = paid - usual
        usual.lerp_(paid.mean(), 0.05)
        spread = -(chances.exp() * chances).sum(1).mean()
        return -(gain * chances.gather(1, arm[:, None])[:, 0]).mean() - 0.01 * spread

    optimizer = optimizer_of("adam", model.parameters(), lr)
    return Training(model, optimizer, loss, lambda: served(model, task), steps, metrics=metrics, **loop)


def _logged(table: str, *, steps: int = 400, lr: float = 3e-3, **loop: Any) -> Training:
    """What another one chose, mostly the arm after the right one, reweighted by how likely it was."""
    task = tasks.table(table)
    model = nets.mlp((task.x.shape[1], 48, task.classes))

    def loss(t: int) -> Tensor:
        x, y = met(task, 64)
        habit = 0.1 + 0.7 * F.one_hot((y + 1) % task.classes, task.classes)
        habit = habit / habit.sum(1, keepdim=True)
        arm = torch.multinomial(habit, 1)
        ratio = model(x).softmax(1).gather(1, arm) / habit.gather(1, arm)
        return -(pays(arm[:, 0], y) * ratio[:, 0]).mean()

    optimizer = optimizer_of("adam", model.parameters(), lr)
    return Training(model, optimizer, loss, lambda: served(model, task), steps, **loop)


@cache
def _hasty() -> nn.Module:
    """A reader of digits after 25 steps, made once with its own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        training = fit(nets.mlp((64, 96, 96, 10)), tasks.digits(), lr=1e-3, steps=25)
        training.run()
    return training.model.requires_grad_(False)


def _preferred(*, beta: float = 0.5, steps: int = 400, lr: float = 2e-4, **loop: Any) -> Training:
    """Of two answers the better one is told; the net may not go far from what it was (DPO)."""
    task, before = tasks.digits(), _hasty()
    model = copy.deepcopy(before).requires_grad_(True)

    def loss(t: int) -> Tensor:
        x, y = met(task, 64)
        lot = torch.randint(10, y.shape)
        other = torch.where(lot == y, (lot + 1) % 10, lot)
        gain = model(x).log_softmax(1) - before(x).log_softmax(1)
        gap = gain.gather(1, y[:, None]) - gain.gather(1, other[:, None])
        return -F.logsigmoid(beta * gap).mean()

    optimizer = optimizer_of("adamw", model.parameters(), lr)
    return Training(model, optimizer, loss, lambda: served(model, task), steps, **loop)


class Walkers:
    """Each stands in a field of 10 x 10 in which somewhere a digit lies, and should go to its middle."""

    def __init__(self, number: int, images: Tensor) -> None:
        corner = torch.randint(FIELD - PICTURE + 1, (number, 2))
        self.field = torch.zeros(number, FIELD, FIELD)
        for field, (row, column), image in zip(self.field, corner.tolist(), images, strict=True):
            field[row : row + PICTURE, column : column + PICTURE] = image.view(PICTURE, PICTURE)
        ink = self.field.flatten(1) / self.field.sum((1, 2))[:, None]
        places = torch.cartesian_prod(torch.arange(FIELD), torch.arange(FIELD)).float()
        self.goal = (ink @ places).round().long()
        self.place = torch.randint(FIELD, (number, 2))

    def look(self) -> Tensor:
        """The field, and where one stands."""
        stand = F.one_hot(self.place, FIELD).flatten(1)
        return torch.cat([self.field.flatten(1) / 8, 2.0 * stand], 1)

    def away(self) -> Tensor:
        """How many moves it is to the goal."""
        return (self.place - self.goal).abs().sum(1)

    def guide(self) -> Tensor:
        """The best move: to the row first, then along it."""
        down, right = (self.goal - self.place).unbind(1)
        along = torch.where(right < 0, 2, torch.where(right > 0, 3, 4))
        return torch.where(down < 0, 0, torch.where(down > 0, 1, along))

    def go(self, move: Tensor) -> Tensor:
        """How much nearer it comes."""
        before = self.away()
        self.place = (self.place + STEPS[move]).clamp(0, FIELD - 1)
        return (before - self.away()).float()


@cache
def _pictures() -> Task:
    """Digits as they lie in the file: paper is 0."""
    return tasks.raw_digits()


def walkers(number: int) -> Walkers:
    """New ones, before pictures to train on."""
    return Walkers(number, met(_pictures(), number)[0])


@torch.no_grad()
def arrived(model: nn.Module) -> float:
    """The share that stands next to the middle of an unseen digit after sixteen moves, or on it."""
    model.eval()
    crowd = Walkers(len(_pictures().test_x), _pictures().test_x)
    for _ in range(WALK):
        out = model(crowd.look())
        if not out.isfinite().all():
            return float("nan")
        crowd.go(out.argmax(1))
    return float((crowd.away() <= 1).float().mean())


def walker() -> nn.Module:
    """Scores of each move."""
    return nets.mlp((FIELD * FIELD + 2 * FIELD, 64, 64, MOVES))


def _guided(*, steps: int = 600, lr: float = 3e-3, **loop: Any) -> Training:
    """The net walks, more and more by itself, and is told what the guide would have done (DAgger)."""
    model, crowd = walker(), [walkers(64)]

    def loss(t: int) -> Tensor:
        if t % WALK == 0:
            crowd[0] = walkers(64)
        (here,) = crowd
        out, told = model(here.look()), here.guide()
        led = torch.rand(64) < 1 - 2 * t / steps
        here.go(torch.where(led, told, out.detach().argmax(1)))
        return F.cross_entropy(out, told)

    optimizer = optimizer_of("adam", model.parameters(), lr)
    return Training(model, optimizer, loss, lambda: arrived(model), steps, **loop)


@cache
def _old_moves() -> tuple[Tensor, ...]:
    """6,400 moves at random, what each brought, and what was seen before and after."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(100):
            crowd = walkers(64)
            before, move = crowd.look(), torch.randint(MOVES, (64,))
            rows.append((before, move, crowd.go(move), crowd.look()))
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _from_logs(*, sign: float = 1.0, steps: int = 500, lr: float = 3e-3, **loop: Any) -> Training:
    """Q-learning from old moves only; what nobody tried is thought little of (CQL)."""
    model = walker()
    slow = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def follow(t: int) -> None:
        for mine, other in zip(slow.parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 0.05)

    def loss(t: int) -> Tensor:
        index = torch.randint(6400, (128,))
        before, move, paid, after = (column[index] for column in _old_moves())
        worth = sign * (paid + 0.5 * slow(after).amax(1))
        out = model(before)
        told = out.gather(1, move[:, None])[:, 0]
        return F.mse_loss(told, worth) + 0.1 * (out.logsumexp(1) - told).mean()

    optimizer = optimizer_of("adam", model.parameters(), lr)
    kept = {"slow": slow}
    return Training(model, optimizer, loss, lambda: arrived(model), steps, before=follow, kept=kept, **loop)


valued = Family("choices", 0.33, 0.97, _valued)
of_two = Family("choices", 0.5, 0.97, _valued)
rewarded = Family("choices", 0.5, 0.97, _rewarded)
logged = Family("choices", 0.33, 0.97, _logged)
preferred = Family("choices", 0.1, 0.92, _preferred)
guided = Family("choices", 0.05, 0.9, _guided)
from_logs = Family("choices", 0.05, 0.93, _from_logs)

SCENARIOS = [
    valued.healthy("now-and-then-another", table="wine"),
    of_two.healthy("by-lot-of-dropout", table="breast_cancer", pick=as_it_seems, drop=0.3),
    rewarded.healthy("moving-mean", table="breast_cancer"),
    logged.healthy("another-one-s-choices", table="wine"),
    preferred.healthy("preferences-lr-2e-4"),
    guided.healthy("guide-asked-on-the-way"),
    from_logs.healthy("old-moves"),
    valued.failing("paid-to-the-next", table="wine", misplaced=True, curable=False),
    rewarded.failing("costs-for-rewards", table="breast_cancer", sign=-1.0, curable=False),
    guided.failing("guide-lr-003", lr=0.03),
    from_logs.failing("worth-negated", sign=-1.0, curable=False),
]
