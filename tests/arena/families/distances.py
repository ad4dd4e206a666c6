"""Digits laid out in a space by learned distances: triplets, pairs, anchors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from arena import faults as f
from arena import tasks
from arena.fitting import fit
from arena.tasks import Task
from arena.training import Family, Training

CLASSES = 3


class Highway(nn.Module):
    """A layer and a gate that says how much of it replaces what came in (Srivastava et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return gate * self.change(x).relu() + (1 - gate) * x


class Places(nn.Module):
    """Digits in, a point of 16 numbers out; beside it the anchors that some losses pull towards."""

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.enter = nn.Linear(64, width)
        self.blocks = nn.Sequential(*(Highway(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.enter(x)))


@torch.no_grad()
def nearest_centre(model: nn.Module, task: Task) -> float:
    """The share of the test part that is nearest to the mean of its own class."""
    model.eval()
    known, asked = model(task.x), model(task.test_x)
    centres = torch.stack([known[task.y == c].mean(0) for c in range(task.classes)])
    if not (centres.isfinite().all() and asked.isfinite().all()):
        return float("nan")
    return float((torch.cdist(asked, centres).argmin(1) == task.test_y).float().mean())


def distances(out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """All distances in a batch, and which pairs are of one class."""
    square = (out[:, None] - out[None]).square().sum(-1)
    return (square + 1e-6).sqrt(), y[:, None] == y[None]


def triplet(margin: float, hard: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """The farthest of one's own has to be nearer than the nearest stranger (Hermans et al. 2017)."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        far, same = distances(out, y)
        if not hard:
            each = far[:, :, None] - far[:, None] + margin
            counted = same[:, :, None] & ~same[:, None]
            return each.clamp(min=0)[counted].mean()
        own = (far * same).amax(1)
        strange = far.masked_fill(same, 1e9).amin(1)
        return (own - strange + margin).clamp(min=0).mean()

    return loss


def without_root_guard(out: Tensor, y: Tensor) -> Tensor:
    """The same by a root without an epsilon: of a point to itself it has no slope."""
    far = (out[:, None] - out[None]).square().sum(-1).sqrt()
    same = y[:, None] == y[None]
    return ((far * same).amax(1) - far.masked_fill(same, 1e9).amin(1) + 0.5).clamp(min=0).mean() + (
        1e-6 * far.mean()
    )


def pulled_only(out: Tensor, y: Tensor) -> Tensor:
    """Own ones are pulled together, and strangers never apart: all becomes one point."""
    far, same = distances(out, y)
    return (far.square() * same).mean()


def pairs(out: Tensor, y: Tensor) -> Tensor:
    """Own ones near, strangers at least 1 apart, which soon all are: few pairs still count."""
    far, same = distances(out, y)
    return (torch.where(same, far.square(), (1 - far).clamp(min=0).square())).mean()


class Anchored(nn.Module):
    """The scores of the classes: how near the point lies to each anchor, at a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.anchors = Places(), nn.Parameter(torch.randn(CLASSES, 16))
        self.heat = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        near = F.normalize(self.places(x), dim=1) @ F.normalize(self.anchors, dim=1).T
        return near * self.heat.exp().clamp(max=100)


def margin(out: Tensor, y: Tensor) -> Tensor:
    """Being right has to be so by 3 (additive margin, Wang et al. 2018)."""
    return F.cross_entropy(out - 3.0 * F.one_hot(y, CLASSES), y)


@cache
def _remainders() -> Task:
    """Digits, and what remains of them when they are divided by three."""
    digits = tasks.digits()
    return Task(digits.x, digits.y % CLASSES, digits.test_x, digits.test_y % CLASSES, CLASSES)


def growing(steps: int) -> Callable[[int, int], Tensor]:
    """A curriculum: digits up to 3, later up to 5, 7 and 9."""
    y = tasks.digits().y
    groups = [torch.nonzero(y <= last).flatten() for last in (3, 5, 7, 9)]

    def draw(t: int, n: int) -> Tensor:
        group = groups[min(3, 5 * t // steps)]
        return group[torch.randint(len(group), (n,))]

    return draw


def _places(anchored: bool = False, **changes: Any) -> Training:
    settings: dict[str, Any] = {"lr": 2e-3, "steps": 250}
    if anchored:
        return fit(Anchored(), _remainders(), **(settings | changes))
    settings |= {"criterion": triplet(0.5), "score": nearest_centre}
    return fit(Places(), _remainders(), **(settings | changes))


class Sharp(Training):
    """Two backward passes a step: the second one a little uphill of where the step is taken from (SAM)."""

    radius = 0.05

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12
        uphill = [p.grad * self.radius / norm for p in parameters]
        torch._foreach_add_([p.data for p in parameters], uphill)
        self.optimizer.zero_grad()
        self.again().backward()
        torch._foreach_sub_([p.data for p in parameters], uphill)

    def again(self) -> Tensor:
        """The loss of this step's batch once more."""
        with torch.random.fork_rng():
            return self.loss(self.notes["step"])

    def step(self, t: int) -> None:
        self.notes["step"] = t
        super().step(t)


class Quasi(Training):
    """The optimizer runs the model itself, several times a step."""

    def take(self, loss: Tensor) -> None:
        if self.guard is not None:
            self.guard.loss(loss)
        self.optimizer.step(self.closure)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(0)
        loss.backward()
        return loss


def pressing(model: nn.Module, _: Optimizer, progress: float) -> None:
    """How far the training is, for losses that change on the way."""
    model.progress = progress


def with_progress(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says, and a column of how far the training is."""
    return F.pad(model(x), (0, 1), value=model.progress)


def ever_smaller(out: Tensor, y: Tensor) -> Tensor:
    """Pairs, and a penalty on the size of the answers whose weight grows to 0.3: the loss rises."""
    return pairs(out[:, :-1], y) + 0.3 * out[0, -1] * out[:, :-1].square().mean() * 16 + out[0, -1]


def handed_over(out: Tensor, y: Tensor) -> Tensor:
    """From pairs to triplets, by weights that change at each step."""
    share = out[0, -1]
    return (1 - share) * pairs(out[:, :-1], y) + 20 * share * triplet(1.0)(out[:, :-1], y)


def drawn(t: int, n: int) -> Tensor:
    """The same batch for the same step."""
    return torch.randint(1400, (n,), generator=torch.Generator().manual_seed(t))


def _sharp(radius: float, **changes: Any) -> Training:
    training = _places(True, order=drawn, **changes)
    sharp = Sharp(training.model, training.optimizer, training.loss, training.score, training.steps)
    sharp.radius = radius
    return sharp


def _quasi(**changes: Any) -> Training:
    settings = {"opt": torch.optim.LBFGS, "lr": 0.5, "steps": 40, "order": lambda t, n: torch.arange(1000)}
    made = _places(True, optim={"max_iter": 3, "history_size": 5}, **(settings | changes))
    return Quasi(made.model, made.optimizer, made.loss, made.score, made.steps)


places = Family("places", 0.66, 0.98, _places)
sharp = Family("places", 0.66, 0.98, _sharp)
quasi = Family("places", 0.66, 0.98, _quasi)

SCENARIOS = [
    places.healthy("hardest-triplets"),
    places.healthy("all-triplets", criterion=triplet(0.5, hard=False), batch=32),
    places.healthy("pairs", criterion=pairs),
    places.healthy("margin-of-3", anchored=True, criterion=margin),
    places.healthy("classes-by-and-by", anchored=True, order=growing(300), steps=300),
    places.healthy("penalty-grows", criterion=ever_smaller, before=pressing, forward=with_progress),
    places.healthy("loss-handed-over", criterion=handed_over, before=pressing, forward=with_progress),
    sharp.healthy("sharpness-aware", radius=0.05),
    quasi.healthy("lbfgs"),
    places.failing("root-of-nothing", criterion=without_root_guard, curable=False),
    places.failing("pulled-only", criterion=pulled_only, curable=False),
    places.failing("other-labels", poison=f.other_labels(CLASSES), curable=False),
    sharp.failing("radius-100", radius=100.0, curable=False),
]
