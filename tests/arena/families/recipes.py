"""Recipes of training around a small net on digits of 14 x 14: what is done besides plain descent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from arena import faults as f
from arena.families import nets
from arena.families.pictures import small_mnist
from arena.fitting import Pair, fit
from arena.tasks import Task
from arena.training import Family, Training


class Half(nn.Module):
    """Rounding to so many steps on each side of zero, with a straight gradient; of a layer's outputs."""

    def __init__(self, steps: float = 1.0) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(-1, 1)
        return x + ((x * self.steps).round() / self.steps - x).detach()


def small(activation: nets.Activation = nn.ReLU) -> nn.Module:
    """Two convolutions with batch norm on 14 x 14, and a linear layer."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 14, 14))]
    for i, o in pairwise((1, 8, 16)):
        layers += [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def _recipe(model: Callable[[], nn.Module] = small, **changes: Any) -> Training:
    return fit(model(), small_mnist(), validated=True, **({"lr": 3e-3, "steps": 250} | changes))


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal before each step (Jordan et al. 2024)."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                average.mul_(0.95).add_(parameter.grad)
                step = average
                if parameter.dim() > 1:
                    u, _, v = torch.linalg.svd(average.flatten(1), full_matrices=False)
                    step = (u @ v).view_as(average)
                parameter.sub_(step, alpha=group["lr"])


class Sam(torch.optim.SGD):
    """Steps by the gradient that is met uphill (Foret et al. 2021): `climb`, a backward pass, `step`."""

    @torch.no_grad()
    def climb(self, by: float) -> None:
        mine = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in mine]).norm()
        self.way = [(p, p.grad * (by / (norm + 1e-12))) for p in mine]
        for parameter, way in self.way:
            parameter.add_(way)
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter, way in self.way:
            parameter.sub_(way)
        super().step()


def _sam(by: float = 0.05, **changes: Any) -> Training:
    training = _recipe(opt=Sam, **({"lr": 0.1, "optim": {"momentum": 0.9}} | changes))
    loss = training.loss

    def uphill(t: int) -> Tensor:
        state = torch.get_rng_state()
        loss(t).backward()
        training.optimizer.climb(by)
        torch.set_rng_state(state)
        return loss(t)

    training.loss = uphill
    return training


def one_more_class_each(steps: int = 300) -> Callable[[int, int], Tensor]:
    """Two classes at first, and another one every thirtieth step."""
    y = small_mnist().y

    def draw(t: int, n: int) -> Tensor:
        known = torch.nonzero(y < 2 + t // 30).flatten()
        return known[torch.randint(len(known), (n,))]

    return draw


def unfreezing(model: nn.Module, _: Optimizer, progress: float) -> None:
    """The head alone, then from a fifth and two fifths on what lies below it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(progress >= {"8": 0.0, "4": 0.2, "5": 0.2}.get(name[0], 0.4))


def freezing(model: nn.Module, _: Optimizer, progress: float) -> None:
    """From half of the run on only the head learns."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(progress < 0.5 or name[0] == "8")
        parameter.grad = parameter.grad if parameter.requires_grad else None


def cyclic_momentum(model: nn.Module, optimizer: Optimizer, progress: float) -> None:
    """Momentum low where the rate is high."""
    optimizer.param_groups[0]["momentum"] = 0.95 - 0.1 * f.one_cycle(progress)


def _ramped(most: float, **changes: Any) -> Training:
    """The squares of all weights, at a price that climbs all the way."""
    training = _recipe(**changes)
    loss, steps = training.loss, training.steps

    def priced(t: int) -> Tensor:
        squares = sum(p.square().sum() for p in training.model.parameters() if p.dim() > 1)
        return loss(t) + most * (t / steps) ** 2 * squares

    training.loss = priced
    return training


class Guess(nn.Module):
    """A code with noise between net and head (variational bottleneck); logits, mean and log variance out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nets.mlp((196, 64, 24)), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        mean, log = self.body(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log / 2).exp() if self.training else mean
        return torch.cat([self.head(code), mean, log], 1)


@torch.no_grad()
def _named(model: nn.Module, task: Task) -> float:
    out = model.eval()(task.test_x)[:, :10]
    return float((out.argmax(1) == task.test_y).float().mean()) if out.isfinite().all() else float("nan")


def _bottleneck(beta: float, **changes: Any) -> Training:
    """The code's price climbs from nothing to `beta`."""
    price = [0.0]

    def anneal(model: nn.Module, _: Optimizer, progress: float) -> None:
        price[0] = beta * min(1.0, 2 * progress)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        logits, mean, log = out.split((10, 12, 12), 1)
        return F.cross_entropy(logits, y) + price[0] * 0.5 * (log.exp() + mean**2 - 1 - log).sum(1).mean()

    return _recipe(Guess, criterion=loss, score=_named, before=anneal, **changes)


class Both(nn.Module):
    """Names a digit and draws it, with a learnt doubt about each (Kendall et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = nets.mlp((196, 64, 64)), nn.ReLU()
        self.name, self.draw = nn.Linear(64, 10), nn.Linear(64, 196)
        self.doubts = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.body(x))
        drawn = F.mse_loss(self.draw(h), x, reduction="none").mean(1, keepdim=True)
        return torch.cat([self.name(h), drawn, self.doubts.expand(len(x), 2)], 1)


def doubted(out: Tensor, y: Tensor) -> Tensor:
    """Each loss divided by its doubt, which costs its log: below zero at the end."""
    name, draw = out[0, 11:]
    return F.cross_entropy(out[:, :10], y) * (-name).exp() + name + out[:, 10].mean() * (-draw).exp() + draw


def named_only(out: Tensor, y: Tensor) -> Tensor:
    """Squares to one at the right class and zero at the others: a tenth at first, hundredths at the end."""
    return F.mse_loss(out, F.one_hot(y, 10).float())


def vague(out: Tensor, y: Tensor) -> Tensor:
    """Targets so smooth that knowing all betters the loss by a few hundredths."""
    return F.cross_entropy(out, y, label_smoothing=0.8)


def modest(out: Tensor, y: Tensor) -> Tensor:
    """Being unsure is paid half as much as being right (Pereyra et al. 2017)."""
    chances = out.log_softmax(-1)
    return F.nll_loss(chances, y) + 0.5 * (chances.exp() * chances).sum(-1).mean()


def fourth_power(out: Tensor, y: Tensor) -> Tensor:
    """The entropy to the fourth: five orders of size in one run."""
    return F.cross_entropy(out, y) ** 4


def _attacked(eps: float, **changes: Any) -> Training:
    """Inputs are moved against the model before each step (Goodfellow et al. 2014)."""
    training = _recipe(**changes)
    model, task = training.model, small_mnist()

    def loss(t: int) -> Tensor:
        index = torch.randint(len(task.x), (64,))
        x, y = task.x[index].requires_grad_(), task.y[index]
        (way,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        return F.cross_entropy(model((x + eps * way.sign()).detach()), y)

    training.loss = loss
    return training


def rounded(steps: float) -> Callable[[], nn.Module]:
    """The net with outputs that are rounded between its layers."""
    return lambda: small(lambda: Half(steps))


def scrambled(t: int, x: Tensor, y: Tensor) -> Pair:
    """Pixels in another order for each example: an augmentation along the wrong axis."""
    return x.gather(1, torch.rand_like(x).argsort(1)), y


def scrambled_labels(share: float) -> Callable[[int, Tensor, Tensor], Pair]:
    """Labels drawn anew for most of each batch."""
    return f.random_labels(10, share)


recipe = Family("recipe", 0.1, 0.93, _recipe)
ramped = Family("recipe", 0.1, 0.93, _ramped)
bottleneck = Family("recipe", 0.1, 0.93, _bottleneck)
sam = Family("recipe", 0.1, 0.93, _sam)
attacked = Family("recipe", 0.1, 0.93, _attacked)
momentum = {"momentum": 0.95}

SCENARIOS = [
    recipe.healthy("unfreezing", before=unfreezing, steps=350),
    recipe.healthy("freezing", before=freezing),
    recipe.healthy("one-more-class-each", order=one_more_class_each(), steps=400),
    ramped.healthy("price-of-weights-climbs", most=0.3, steps=400),
    bottleneck.healthy("price-of-code-climbs", beta=0.2, steps=400),
    sam.healthy("uphill-first"),
    recipe.healthy("muon", opt=Muon, lr=0.02),
    recipe.healthy("adafactor", opt=torch.optim.Adafactor, lr=1e-2),
    recipe.healthy(
        "cyclic-momentum", opt="sgd", lr=0.2, schedule=f.one_cycle, before=cyclic_momentum, optim=momentum
    ),
    recipe.healthy("rounded-to-3-values", model=rounded(1.0), steps=400),
    recipe.healthy("two-tasks-doubted", model=Both, criterion=doubted, score=_named, steps=500, lr=5e-3),
    recipe.healthy("squares", criterion=named_only),
    recipe.healthy("vague-targets", criterion=vague),
    recipe.healthy("modest", criterion=modest),
    recipe.healthy("fourth-power", criterion=fourth_power),
    recipe.healthy("70-percent-noise", poison=scrambled_labels(0.7), steps=500),
    attacked.healthy("attacked", eps=0.05),
    recipe.healthy("batch-2048", batch=1024, steps=60, lr=1e-2),
    recipe.failing("scrambled", poison=scrambled, curable=False),
    # A hundredth of what lies within -1..1 rounds to nothing, whatever the weights: so learns a bias.
    recipe.failing("rounded-to-nothing", model=rounded(0.01), curable=False),
    ramped.failing("price-drowns-all", most=30.0, curable=False),
    bottleneck.failing("code-too-dear", beta=30.0, curable=False),
    recipe.failing("muon-lr-10", opt=Muon, lr=10.0),
    attacked.failing("attacked-too-hard", eps=1.0, curable=False),
    recipe.failing("momentum-099-lr-5", opt="sgd", lr=5.0, optim={"momentum": 0.99}),
    recipe.failing("unfrozen-into-heat", before=unfreezing, schedule=f.jump(0.4, 1000.0)),
]
