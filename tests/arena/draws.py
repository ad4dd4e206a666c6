"""Trainings whose settings are drawn at random: tasks and networks that go together, all that people turn.

Flow: a number in, what it was drawn with out; of that, the scenario that trains so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from arena import faults, tasks
from arena.families import nets
from arena.fitting import fit
from arena.tasks import Task
from arena.training import Scenario, Training

Settings = Mapping[str, Any]


class Kind(NamedTuple):
    """A task, the network for it, and the scores of knowing nothing and of a good run."""

    task: Callable[[], Task]
    net: Callable[[Settings, Task], nn.Module]
    chance: float
    reference: float


def _mlp(drawn: Settings, task: Task) -> nn.Module:
    widths = (task.x.shape[1], *[drawn["width"]] * drawn["depth"], task.classes or 1)
    return nets.mlp(widths, drawn["activation"], drawn["drop"], drawn["norm"])


def _bottleneck(drawn: Settings, task: Task) -> nn.Module:
    return nets.mlp((64, drawn["width"], 12, drawn["width"], 64), drawn["activation"])


def _recurrent(cell: str, drawn: Settings, task: Task) -> nn.Module:
    return nets.Recurrent(cell, drawn["width"], layers=min(drawn["depth"], 2))


def _vit(drawn: Settings, task: Task) -> nn.Module:
    return nets.Vit(drawn["width"] // 2, min(drawn["depth"], 4), not drawn["norm"], drawn["drop"])


def _transformer(drawn: Settings, task: Task) -> nn.Module:
    return nets.Transformer(drawn["width"] // 2, min(drawn["depth"], 4), not drawn["norm"], drawn["drop"])


def _autoencoded() -> Task:
    task = tasks.digits()
    return Task(task.x, task.x, task.test_x, task.test_x)


def _pictures() -> Task:
    return tasks.digits().reshape(1, 8, 8)


KINDS: Mapping[str, Kind] = {
    "digits": Kind(tasks.digits, _mlp, 0.1, 0.96),
    "raw digits": Kind(tasks.raw_digits, _mlp, 0.1, 0.96),
    "wine": Kind(partial(tasks.table, "wine"), _mlp, 0.4, 0.97),
    "raw wine": Kind(partial(tasks.table, "wine", False), _mlp, 0.4, 0.97),
    "cancer": Kind(partial(tasks.table, "breast_cancer"), _mlp, 0.63, 0.96),
    "diabetes": Kind(tasks.diabetes, _mlp, 0.0, 0.45),
    "raw diabetes": Kind(partial(tasks.diabetes, False), _mlp, 0.0, 0.45),
    "lecture": Kind(tasks.mnist, lambda d, _: nets.lecture_cnn(d["activation"], d["norm"]), 0.1, 0.95),
    "pictures": Kind(_pictures, lambda *_: nets.Functional(), 0.1, 0.97),
    "residual": Kind(
        tasks.digits, lambda d, _: nets.Residual(d["width"], 2 * d["depth"], d["norm"]), 0.1, 0.96
    ),
    "autoencoder": Kind(_autoencoded, _bottleneck, 0.46, 0.8),
    "RNN": Kind(tasks.digits, partial(_recurrent, "RNN"), 0.1, 0.93),
    "LSTM": Kind(tasks.digits, partial(_recurrent, "LSTM"), 0.1, 0.95),
    "GRU": Kind(tasks.digits, partial(_recurrent, "GRU"), 0.1, 0.95),
    "ViT": Kind(tasks.digits, _vit, 0.1, 0.93),
    "letters": Kind(tasks.letters, _transformer, -3.35, -2.05),
    "origins": Kind(tasks.origins, lambda d, _: nets.Bag(width=d["width"]), 0.2, 0.85),
    "experts": Kind(tasks.digits, lambda d, _: nets.Experts(width=d["width"]), 0.1, 0.96),
}
RATES = {"sgd": 0.1, "momentum": 0.03, "adam": 2e-3, "adamw": 2e-3, "rmsprop": 1e-3}
ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.SiLU)
SCHEDULES: Mapping[str, Callable[[float], float] | None] = {
    "constant": None,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "warm-up": lambda progress: min(1.0, 10 * progress + 0.05),
    "one cycle": lambda progress: 3 * min(progress / 0.3 + 0.04, (1 - progress) / 0.7 + 1e-4),
    "steps": lambda progress: 0.3 ** int(3 * progress),
    "warm restarts": faults.warm_restarts,
}


def settings(number: int) -> dict[str, Any]:
    """What a run is drawn with; learning rates lie around the usual ones, one in three five times off."""
    draw = random.Random(number)
    optimizer = draw.choice(list(RATES))
    return {
        "kind": draw.choice(list(KINDS)),
        "depth": draw.choice([1, 1, 2, 2, 3, 4, 6]),
        "width": draw.choice([16, 32, 64, 128]),
        "activation": draw.choice(ACTIVATIONS),
        "norm": draw.random() < 0.4,
        "drop": draw.choice([0.0, 0.0, 0.1, 0.3, 0.5]),
        "optimizer": optimizer,
        "lr": RATES[optimizer] * math.exp(draw.gauss(0, 1.6)),
        "decay": draw.choice([0.0, 0.0, 1e-4, 1e-2]),
        "batch": draw.choice([8, 16, 32, 64, 128]),
        "steps": draw.choice([200, 300, 300, 600]),
        "schedule": draw.choice(list(SCHEDULES)),
        "weights": draw.choice([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 3.0]),
        "clip": draw.choice([None, None, None, 1.0, 0.1]),
        "accumulate": draw.choice([1, 1, 1, 1, 2]),
        "noise": draw.choice([0.0, 0.0, 0.0, 0.2]),
        "loss": draw.choice([1.0, 1.0, 1.0, 100.0, 0.01]),
        "bf16": draw.random() < 0.1,
        "val_loss": draw.random() < 0.5,
        "length known": draw.random() < 0.7,
    }


def _build(drawn: Settings) -> Training:
    kind = KINDS[drawn["kind"]]
    task, optimizer, scale = kind.task(), drawn["optimizer"], drawn["loss"]
    momentum = {"momentum": 0.9} if optimizer == "momentum" else {}
    plain = optimizer in ("sgd", "momentum")
    noisy = drawn["noise"] > 0 and task.classes and task.y.dim() == 1
    return fit(
        kind.net(drawn, task),
        task,
        # Plain descent takes the loss's scale for a learning rate.
        lr=drawn["lr"] / scale if plain else drawn["lr"],
        opt="sgd" if momentum else optimizer,
        steps=drawn["steps"],
        batch=drawn["batch"],
        schedule=SCHEDULES[drawn["schedule"]],
        prepare=faults.weights(drawn["weights"]),
        poison=faults.random_labels(task.classes, drawn["noise"]) if noisy else None,
        scale=scale,
        autocast=torch.bfloat16 if drawn["bf16"] else None,
        optim={"weight_decay": drawn["decay"]} | momentum,
        validated=drawn["val_loss"],
        clip=None if drawn["clip"] is None else drawn["clip"] * scale,
        accumulate=drawn["accumulate"],
    )


def scenario(number: int) -> Scenario:
    """The training of that number."""
    drawn = settings(number)
    kind = KINDS[drawn["kind"]]
    build = partial(_build, drawn)
    return Scenario(f"drawn/{number}", "drawn", "drawn", build, kind.chance, kind.reference)
