"""A workshop for reading digits of 14 x 14: tricks of the trade, home-made optimizers and odd nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from arena.families import nets
from arena.families.pictures import small_mnist
from arena.families.tools import Curvature, Forgetless, Lamb, Langevin, NoFloor, Shampoo
from arena.fitting import fit
from arena.training import Family, Training


class Pulses(nn.Module):
    """Neurons that charge and fire (Neftci et al. 2019); a straight gradient near the threshold only."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.read, self.head = nn.Linear(196, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        flow, charge, total = 2 * self.read(x), x.new_zeros(len(x), 96), 0.0
        for _ in range(6):
            charge = 0.8 * charge + flow
            over = charge - self.threshold
            soft = over.clamp(-1, 1) / 2
            fired = soft + ((over > 0).float() - soft).detach()
            charge = charge - fired.detach() * self.threshold
            total = total + fired
        return self.head(total / 6)


class Settling(nn.Module):
    """One layer that is gone through until it settles (deep equilibria, Bai et al. 2019)."""

    def __init__(self, gain: float = 0.7, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.enter, self.again, self.head = (
            nn.Linear(196, 64),
            nn.Linear(64, 64, bias=False),
            nn.Linear(64, 10),
        )
        nn.init.orthogonal_(self.again.weight, gain)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        pushed = self.enter(x)
        state = torch.zeros_like(pushed)
        for _ in range(25):
            state = self.act(self.again(state) + pushed)
        return self.head(state)


class Astray(torch.autograd.Function):
    """A product whose gradient goes back through another matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(x, back)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, back = ctx.saved_tensors
        return grad @ back, grad.T @ x, None


class Aligned(nn.Linear):
    """A layer that sends its errors back through a fixed matrix by lot (Lillicrap et al. 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("back", torch.randn_like(self.weight) / outputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return Astray.apply(x, self.weight, self.back) + self.bias


class Signs(nn.Linear):
    """Only the signs of its weights count (Courbariaux et al. 2015); the gradient goes straight through."""

    def forward(self, x: Tensor) -> Tensor:
        hard = self.weight.sign() * self.weight.abs().mean()
        return F.linear(x, self.weight + (hard - self.weight).detach(), self.bias)


class Lottery(nn.Module):
    """Six blocks of convolutions, each left out of half of all steps (Huang et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Linear(16 * 49, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.view(-1, 1, 14, 14))
        for block in self.blocks:
            if not self.training:
                h = h + 0.5 * block(h)
            elif torch.rand(()) < 0.5:
                h = h + block(h)
        return self.head(h.relu().flatten(1))


class Exits(nn.Module):
    """Four layers of which each gives an answer; in training all of them come out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nets.mlp((i, 48)) for i in (196, 48, 48, 48))
        self.heads = nn.ModuleList(nn.Linear(48, 10) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        answers: list[Tensor] = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = torch.tanh(layer(x))
            answers.append(head(x))
        return torch.stack(answers, 1) if self.training else answers[-1]


class Chosen(nn.Module):
    """Twenty choices of one among eight lie between the parts, drawn by lot, ever more sharply."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.head, self.heat = nets.mlp((196, 64, 160)), nn.Linear(160, 10), 2.0

    def forward(self, x: Tensor) -> Tensor:
        scores = self.ask(x).view(-1, 20, 8)
        code = F.gumbel_softmax(scores, self.heat, hard=True) if self.training else scores.softmax(2).round()
        return self.head(code.flatten(1))


class Sphere(nn.Module):
    """Directions compared with the directions of ten classes, times 20."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = nets.mlp((196, 64, 24)), nn.Parameter(torch.randn(10, 24))

    def forward(self, x: Tensor) -> Tensor:
        return 20 * F.normalize(self.body(x), dim=1) @ F.normalize(self.classes, dim=1).T


def conv(momentum: float = 0.1) -> nn.Module:
    """Three convolutions with batch norm."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 14, 14))]
    for i, o in ((1, 12), (12, 24), (24, 24)):
        layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10))


def dense(activation: nets.Activation = nn.ReLU) -> nn.Module:
    """One hidden layer of 64."""
    return nets.mlp((196, 64, 10), activation)


def signs() -> nn.Module:
    """Weights of two values, with batch norm between."""
    parts = (Signs(196, 128), nn.BatchNorm1d(128), nn.Hardtanh(), Signs(128, 64), nn.BatchNorm1d(64))
    return nn.Sequential(*parts, nn.Hardtanh(), nn.Linear(64, 10))


def astray() -> nn.Module:
    """Three layers, the last two of which send errors back astray."""
    return nn.Sequential(nn.Linear(196, 64), nn.Tanh(), Aligned(64, 64), nn.Tanh(), Aligned(64, 10))


def every_exit(out: Tensor, y: Tensor) -> Tensor:
    """The sum over all answers."""
    if out.dim() == 2:
        return F.cross_entropy(out, y)
    return 4 * F.cross_entropy(out.flatten(0, 1), y.repeat_interleave(4))


def with_margin(out: Tensor, y: Tensor) -> Tensor:
    """The right class must win by much (Wang et al. 2018)."""
    return F.cross_entropy(out - 20 * 0.3 * F.one_hot(y, 10), y)


def cooling(model: nn.Module, _: Optimizer, progress: float) -> None:
    """The lot's heat goes down to a third."""
    model.heat = 2.0 * (1 - 0.8 * progress)


@torch.no_grad()
def pruning(model: nn.Module, _: Optimizer, progress: float) -> None:
    """Ever more of the smallest weights become zero, nine tenths in the end (Zhu and Gupta 2017)."""
    share = 0.9 * (1 - (1 - min(1.0, 1.5 * progress)) ** 3)
    for parameter in (p for p in model.parameters() if p.dim() > 1):
        bound = parameter.abs().flatten().quantile(share)
        parameter.mul_(parameter.abs() >= bound)


@torch.no_grad()
def pruning_the_wrong_end(model: nn.Module, _: Optimizer, progress: float) -> None:
    """The largest become zero at each step: a comparison the wrong way round."""
    for parameter in (p for p in model.parameters() if p.dim() > 1):
        parameter.mul_(parameter.abs() <= parameter.abs().flatten().quantile(0.3))


def forgetting(model: nn.Module, optimizer: Optimizer, _: float) -> None:
    """The optimizer is made anew at each step."""
    optimizer.state.clear()


def squared(lr: float) -> Callable[[float], float]:
    """A schedule that says the rate itself where the library wants a factor of it."""
    return lambda p: lr * (1 - p)


def _worked(model: Callable[[], nn.Module] = dense, **changes: Any) -> Training:
    return fit(model(), small_mnist(), validated=True, **({"lr": 3e-3, "steps": 250} | changes))


def _curved(floor: float = 1e-3, clip: float = 1.0, **changes: Any) -> Training:
    """Each tenth step the curvature is felt with a vector by lot (Hutchinson 1989, as in Sophia)."""
    training = _worked(opt=Curvature, **({"lr": 0.02, "optim": {"floor": floor, "clip": clip}} | changes))
    loss = training.loss

    def feel(t: int) -> Tensor:
        if t % 10 == 0:
            training.optimizer.feel(loss(t))
        return loss(t)

    training.loss = feel
    return training


workshop = Family("workshop", 0.1, 0.93, _worked)
curved = Family("workshop", 0.1, 0.93, _curved)

SCENARIOS = [
    workshop.healthy("pulses", model=Pulses),
    workshop.healthy("settling", model=Settling),
    workshop.healthy("errors-go-back-astray", model=astray, opt="sgd", lr=0.1, steps=500),
    workshop.healthy("signs-of-weights", model=signs, lr=5e-3, steps=300),
    workshop.healthy("blocks-by-lot", model=Lottery, lr=5e-3, steps=300),
    workshop.healthy("answers-at-each-depth", model=Exits, criterion=every_exit),
    workshop.healthy("choices-that-cool", model=Chosen, before=cooling, lr=5e-3, steps=400),
    workshop.healthy("wins-by-a-margin", model=Sphere, criterion=with_margin, lr=5e-3),
    workshop.healthy("pruned-on-the-way", before=pruning, lr=5e-3, steps=400),
    workshop.healthy("lamb", opt=Lamb, lr=0.02, batch=256),
    workshop.healthy("both-sides", opt=Shampoo, lr=0.3),
    workshop.healthy("warm-walk", opt=Langevin, lr=0.1, optim={"heat": 1e-6}, steps=500),
    curved.healthy("curvature"),
    workshop.failing("pulses-never", model=lambda: Pulses(threshold=40.0), curable=False),
    workshop.failing("never-settles", model=lambda: Settling(2.5, torch.relu)),
    workshop.failing("pruned-at-the-wrong-end", before=pruning_the_wrong_end, curable=False),
    workshop.failing("made-anew-each-step", before=forgetting, lr=5.0),
    curved.failing("curvature-unclipped", floor=1e-12, clip=1e9),
    workshop.failing("no-floor", opt=NoFloor, curable=False),
    workshop.failing("momentum-forgets-nothing", opt=Forgetless, lr=1.0),
    workshop.failing("norm-never-counts", model=lambda: conv(momentum=0.0), curable=False),
    workshop.failing("rate-squared", opt="sgd", lr=1e-2, schedule=squared(1e-2)),
]
