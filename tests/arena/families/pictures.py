"""Mixers, denoising U-nets, variational autoencoders, and plain nets under optimizers seldom seen."""

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
from arena.families import blocks, nets
from arena.fitting import fit
from arena.tasks import Task
from arena.training import Family, Training

NAN, INF = float("nan"), float("inf")


class Lion(Optimizer):
    """The sign of an average of gradients, times the rate (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.sub_(average.lerp(parameter.grad, 1 - fast).sign(), alpha=group["lr"])
                average.lerp_(parameter.grad, 1 - slow)


def _mixer(drop: float = 0.0, depth: int = 2, **changes: Any) -> Training:
    task = changes.pop("task", tasks.digits())
    return fit(blocks.Mixer(blocks=depth, drop=drop), task, **({"lr": 3e-3, "steps": 250} | changes))


@cache
def _noisy() -> Task:
    """Clean digits as inputs and targets; the inputs of the test part are noisy once and for all."""
    task = tasks.digits()
    noise = torch.randn(task.test_x.shape, generator=torch.Generator().manual_seed(3))
    return Task(task.x, task.x, task.test_x + noise, task.test_x)


def _denoiser(
    norm: bool = True,
    positive: bool = False,
    noise: Callable[[int], float] = lambda t: 1.0,
    spoil: Callable[[int, Tensor, Tensor], f.Pair] | None = None,
    **changes: Any,
) -> Training:
    """Noise is drawn anew for each batch; `spoil` acts on the noisy batch."""

    def poison(t: int, x: Tensor, y: Tensor) -> f.Pair:
        x = x + noise(t) * torch.randn_like(x)
        return spoil(t, x, y) if spoil else (x, y)

    settings = {"lr": 5e-3, "steps": 200, "batch": 32, "poison": poison}
    return fit(blocks.Unet(norm=norm, positive=positive), _noisy(), **(settings | changes))


@cache
def _grey() -> Task:
    """Digits of 8 x 8 in 0..1, to be given back."""
    task = tasks.raw_digits()
    return Task(task.x / 16, task.x / 16, task.test_x / 16, task.test_x / 16)


def _parts(out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the bound for each example, in nats: of the pixels and of the code."""
    logits, (mean, spread) = out[:, :64], out[:, 64:].chunk(2, 1)
    pixels = F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1)
    return pixels, 0.5 * (spread.exp() + mean**2 - 1 - spread).sum(1)


def bound(beta: float = 1.0, free: float = 0.0, total: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The negative bound with its second part weighted, free up to some nats, as a mean or a sum."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        pixels, code = _parts(out, y)
        each = pixels + beta * code.clamp(min=free)
        return each.sum() if total else each.mean()

    return loss


def _by_hand(out: Tensor, y: Tensor) -> Tensor:
    """The pixels' entropy without its safe form: 0 times the log of 0 once a pixel is sure."""
    p, (_, code) = out[:, :64].sigmoid(), _parts(out, y)
    return -(y * p.log() + (1 - y) * (1 - p).log()).sum(1).mean() + code.mean()


@torch.no_grad()
def _bound_of(model: nn.Module, task: Task) -> float:
    """The bound on the test part, with the mean code."""
    model.eval()
    pixels, code = _parts(model(task.test_x), task.test_y)
    return -float((pixels + code).mean())


def _vae(**changes: Any) -> Training:
    task = changes.pop("task", _grey())
    settings = {"lr": 3e-3, "steps": 500, "criterion": bound(), "score": _bound_of}
    return fit(blocks.Vae(), task, **(settings | changes))


@cache
def _well() -> dict[str, Tensor]:
    """What a finished training of this kind left, made once with its own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        training = _vae()
        training.run()
    return training.model.state_dict()


def _trained(model: nn.Module) -> None:
    """The model goes on from there."""
    model.load_state_dict(_well())


@cache
def small_mnist(scaled: bool = True) -> Task:
    """MNIST at 14 x 14, flat; in 0..1, or in 0..255 as it is stored."""
    task = tasks.mnist()
    x, test = (F.avg_pool2d(part, 2).flatten(1) for part in (task.x, task.test_x))
    return (
        Task(x, task.y, test, task.test_y, 10)
        if scaled
        else Task(x * 255, task.y, test * 255, task.test_y, 10)
    )


def _plain(kind: str = "maxout", scaled: bool = True, drop: float = 0.0, **changes: Any) -> Training:
    """Two hidden layers: maxout, or with an activation of that name from `torch.nn`."""
    task, width = small_mnist(scaled), 48
    if kind == "maxout":
        hidden = [blocks.Maxout(196, width), nn.Dropout(drop), blocks.Maxout(width, width)]
        model = nn.Sequential(*hidden, nn.Linear(width, 10))
    else:
        model = nets.mlp((196, width, width, 10), getattr(nn, kind), drop)
    return fit(model, task, **({"lr": 2e-3, "steps": 300} | changes))


mixer = Family("mixer", 0.1, 0.965, _mixer)
denoiser = Family("denoiser", 0.48, 0.8, _denoiser)
vae = Family("vae", -27.2, -23.3, _vae)
maxout = Family("maxout", 0.1, 0.93, _plain)


SCENARIOS = [
    mixer.healthy("plain"),
    mixer.healthy(
        "one-cycle-sgd", opt="sgd", lr=0.2, optim={"momentum": 0.9}, schedule=f.one_cycle, steps=300
    ),
    mixer.healthy("frozen-token-nets", prepare=f.freeze("token")),
    mixer.healthy("batch-4", batch=4, lr=1e-3, steps=500),
    mixer.healthy("lr-x10", lr=0.03),
    mixer.healthy("bf16-clip", autocast=torch.bfloat16, clip=1.0),
    mixer.failing("lr-x1000", lr=3.0),
    mixer.failing("half-overflow", autocast=torch.float16, prepare=f.weights(300.0), steps=100),
    mixer.failing(
        "schedule-in-epochs", opt="sgd", lr=0.1, optim={"momentum": 0.9}, schedule=lambda p: 1.03 ** (250 * p)
    ),
    mixer.failing("norm-bias-alone", parameters=lambda m: [m.norm.bias], curable=False),
    mixer.failing(
        "sorted",
        order=f.by_label(tasks.digits().y),
        opt="sgd",
        lr=0.1,
        optim={"momentum": 0.9},
        curable=False,
    ),
    denoiser.healthy("plain"),
    denoiser.healthy("no-norm", norm=False, lr=2e-3, steps=300),
    denoiser.healthy("sum-of-squares", criterion=lambda out, y: F.mse_loss(out, y, reduction="sum")),
    denoiser.healthy("noise-grows", noise=lambda t: 0.2 + t / 200),
    denoiser.healthy("loss-of-1e-7", scale=1e-7, opt="rmsprop", lr=2e-3, optim={"eps": 1e-14}),
    denoiser.failing("lr-3", lr=3.0),
    denoiser.failing(
        "sum-sgd",
        criterion=lambda out, y: F.mse_loss(out, y, reduction="sum"),
        opt="sgd",
        lr=0.05,
        norm=False,
    ),
    denoiser.failing(
        "other-targets",
        poison=lambda t, x, y: (x + torch.randn_like(x), y[torch.randperm(len(y))]),
        curable=False,
    ),
    # Without the fault it comes to 0.12: its outputs cannot be negative, and most pixels are.
    denoiser.failing(
        "dead-output",
        positive=True,
        prepare=lambda m: nn.init.constant_(m.out.bias, -20.0),
        curable=False,
    ),
    denoiser.failing("nan-pixel", spoil=f.bad_values(NAN, f.each(30, 40))),
    denoiser.failing("tiny-lr", lr=1e-7),
    vae.healthy("plain"),
    vae.healthy("free-bits", criterion=bound(free=2.0)),
    vae.healthy("sum-over-batch", criterion=bound(total=True)),
    vae.healthy("loss-below-zero", criterion=lambda out, y: bound()(out, y) - 60.0),
    vae.healthy("warm-restarts", schedule=f.warm_restarts, lr=5e-3),
    vae.failing("beta-100", criterion=bound(beta=100.0), curable=False),
    vae.failing("lr-1", lr=1.0),
    vae.failing("sum-sgd", criterion=bound(total=True), opt="sgd", lr=1e-2),
    vae.failing("log-by-hand", criterion=_by_hand, prepare=f.weights(8.0)),
    vae.failing("code-rewarded", criterion=bound(beta=-1.0), curable=False),
    vae.failing("decoder-left-out", parameters=lambda m: m.encoder.parameters(), curable=False),
    vae.healthy("starts-trained", prepare=_trained, opt="sgd", lr=1e-3, steps=200),
    maxout.healthy("nadam-elu", kind="ELU", opt=torch.optim.NAdam, lr=2e-3),
    maxout.healthy("adadelta-gelu", kind="GELU", opt=torch.optim.Adadelta, lr=1.0),
    maxout.healthy("rmsprop-dropout", drop=0.5, opt="rmsprop", lr=1e-3, steps=400),
    maxout.healthy("adagrad", opt="adagrad", lr=0.03),
    maxout.healthy("lion-silu", kind="SiLU", opt=Lion, lr=1e-3),
    maxout.healthy("raw-radam", scaled=False, opt=torch.optim.RAdam, lr=1e-3, steps=400),
    maxout.failing("adadelta-lr-of-adam", opt=torch.optim.Adadelta, lr=1e-4, kind="GELU"),
    maxout.failing("rprop-on-batches", opt=torch.optim.Rprop, lr=0.1, kind="ELU", batch=2),
    maxout.failing("rmsprop-lr-3", opt="rmsprop", lr=3.0, kind="GELU"),
    maxout.failing("lion-sgd-lr", opt=Lion, lr=1.0, kind="SiLU"),
    maxout.failing("raw-sgd", scaled=False, opt="sgd", lr=0.1),
    maxout.failing("zero-grad-forgotten", zero_grad=False, opt="sgd", lr=0.1, curable=False),
    maxout.healthy("tasks-switch", order=f.halves(small_mnist().y, 400), steps=400),
    maxout.healthy("pruned-70", kind="GELU", prepare=f.pruned(0.7), steps=400),
]
