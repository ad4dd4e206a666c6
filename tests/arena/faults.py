"""Faults and oddities by name: initialisations, schedules, poisoned batches, losses, orders of the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


# Initialisations: each returns what `prepare` takes.
def weights(factor: float) -> Callable[[nn.Module], None]:
    """All matrices times a factor."""

    @torch.no_grad()
    def change(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)

    return change


def constant(value: float) -> Callable[[nn.Module], None]:
    """All matrices at one value, all vectors at zero."""

    @torch.no_grad()
    def change(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.fill_(value if parameter.dim() > 1 else 0.0)

    return change


def biases(value: float) -> Callable[[nn.Module], None]:
    """The biases of all linear and convolutional layers but the last at one value."""

    @torch.no_grad()
    def change(model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        for layer in layers[:-1]:
            if layer.bias is not None:
                layer.bias.fill_(value)

    return change


def he(model: nn.Module) -> None:
    """Kaiming initialisation of linear and convolutional layers."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def freeze(pattern: str) -> Callable[[nn.Module], None]:
    """No gradients for the parameters whose names contain the pattern."""

    def change(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if pattern in name:
                parameter.requires_grad_(False)

    return change


def pruned(share: float) -> Callable[[nn.Module], None]:
    """So many of each matrix's weights are zero and stay so."""

    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                mask = (torch.rand_like(module.weight) > share).float()
                with torch.no_grad():
                    module.weight.mul_(mask)
                module.weight.register_hook(lambda grad, mask=mask: grad * mask)

    return change


# Schedules: progress 0..1 to a factor.
def warmup(share: float = 0.1) -> Callable[[float], float]:
    """Linear to 1, then constant."""
    return lambda p: min(1.0, (p + 1e-3) / share)


def one_cycle(p: float) -> float:
    """Up for a third, then down along a cosine to a thousandth."""
    return max(p / 0.3, 0.04) if p < 0.3 else 1e-3 + 0.5 * (1 + math.cos(math.pi * (p - 0.3) / 0.7))


def warm_restarts(p: float) -> float:
    """Three cosines from 1 to nothing."""
    return 0.5 * (1 + math.cos(math.pi * ((3 * p) % 1.0)))


def late_start(p: float) -> float:
    """Nothing much happens for the first 30 %."""
    return 0.003 if p < 0.3 else 1.0


def jump(at: float, factor: float) -> Callable[[float], float]:
    """Times a factor from one moment on."""
    return lambda p: factor if p >= at else 1.0


# Batches: each returns what `poison` takes.
def bad_values(value: float, at: Callable[[int], bool]) -> Callable[[int, Tensor, Tensor], Pair]:
    """One input of the batch is `value`, at some steps."""

    def change(t: int, x: Tensor, y: Tensor) -> Pair:
        if at(t):
            x = x.clone()
            x.view(len(x), -1)[0, 0] = value
        return x, y

    return change


def outliers(
    factor: float, at: Callable[[int], bool], share: float = 1.0
) -> Callable[[int, Tensor, Tensor], Pair]:
    """Inputs are multiplied, of a share of the batch, at some steps."""

    def change(t: int, x: Tensor, y: Tensor) -> Pair:
        if at(t):
            x = x.clone()
            x[: max(1, int(share * len(x)))] *= factor
        return x, y

    return change


def random_labels(classes: int, share: float = 1.0) -> Callable[[int, Tensor, Tensor], Pair]:
    """Labels drawn anew for a share of each batch."""

    def change(t: int, x: Tensor, y: Tensor) -> Pair:
        drawn = torch.randint(classes, y.shape)
        return x, torch.where(torch.rand(y.shape) < share, drawn, y)

    return change


def ignored(at: Callable[[int], bool]) -> Callable[[int, Tensor, Tensor], Pair]:
    """All targets are masked, at some steps: a mean over nothing, 0 / 0."""
    return lambda t, x, y: (x, torch.full_like(y, -100) if at(t) else y)


def constant_input(t: int, x: Tensor, y: Tensor) -> Pair:
    """All inputs are the same."""
    return torch.ones_like(x), y


def other_labels(classes: int) -> Callable[[int, Tensor, Tensor], Pair]:
    """Targets that belong to another example of the batch."""
    return lambda t, x, y: (x, y[torch.randperm(len(y))])


def always(t: int) -> bool:
    """At each step."""
    return True


def each(n: int, after: int = 0) -> Callable[[int], bool]:
    """At each n-th step from `after` on."""
    return lambda t: t >= after and t % n == n - 1


def once(at: int) -> Callable[[int], bool]:
    """At one step."""
    return lambda t: t == at


def since(at: int) -> Callable[[int], bool]:
    """From a step on."""
    return lambda t: t >= at


# Losses: of outputs and targets.
def entropy(out: Tensor, y: Tensor) -> Tensor:
    """Cross entropy at each place."""
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


def wrong_sign(out: Tensor, y: Tensor) -> Tensor:
    """It climbs where it should descend."""
    return -entropy(out, y)


def naive_log(out: Tensor, y: Tensor) -> Tensor:
    """Log of a softmax by hand: Inf as soon as the model is sure and wrong."""
    return -(out.exp() / out.exp().sum(-1, keepdim=True)).log().gather(-1, y.unsqueeze(-1)).mean()


def double_softmax(out: Tensor, y: Tensor) -> Tensor:
    """A softmax before a loss that has one."""
    return entropy(out.softmax(-1), y)


def detached(out: Tensor, y: Tensor) -> Tensor:
    """A loss that is cut from the model."""
    return entropy(out.detach(), y).requires_grad_()


def smoothed(out: Tensor, y: Tensor) -> Tensor:
    """Label smoothing: a loss with a floor."""
    return F.cross_entropy(out.flatten(0, -2), y.flatten(), label_smoothing=0.3)


def shifted(by: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A constant added: a floor, or a loss below zero."""
    return lambda out, y: entropy(out, y) + by


# Orders of the data: (step, size) to indices.
def by_label(y: Tensor) -> Callable[[int, int], Tensor]:
    """Sorted by label, gone through once and again, slowly."""
    order = y.argsort()
    return lambda t, n: order[(torch.arange(n) + t * n) % len(order)]


def one_class_a_batch(y: Tensor, run: int = 1) -> Callable[[int, int], Tensor]:
    """Each batch holds one class only, the same for `run` batches."""
    groups = [torch.nonzero(y == c).flatten() for c in y.unique()]

    def draw(t: int, n: int) -> Tensor:
        group = groups[(t // run) % len(groups)]
        return group[torch.randint(len(group), (n,))]

    return draw


def halves(y: Tensor, steps: int, mixed: float = 0.7) -> Callable[[int, int], Tensor]:
    """First the lower classes, then the upper ones, then all: tasks that switch."""
    middle = y.float().mean()
    low, high = torch.nonzero(y < middle).flatten(), torch.nonzero(y >= middle).flatten()

    def draw(t: int, n: int) -> Tensor:
        group = low if t < steps * mixed / 2 else high if t < steps * mixed else torch.arange(len(y))
        return group[torch.randint(len(group), (n,))]

    return draw
