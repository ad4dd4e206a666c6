"""Convolutional nets, multilayer perceptrons deep and shallow, sigmoid and tanh nets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import fit
from arena.training import Family, Training


def _lecture(
    activation: nets.Activation = nn.ReLU, norm: bool = False, raw: bool = False, **changes: Any
) -> Training:
    task = tasks.mnist()
    model = nets.lecture_cnn(activation, norm)
    if not raw:
        f.he(model)
    return fit(model, task, **({"lr": 0.1, "opt": "sgd", "steps": 200, "batch": 128} | changes))


def _small_cnn(task: tasks.Task | None = None, **changes: Any) -> Training:
    task = (task or tasks.digits()).reshape(1, 8, 8)
    return fit(nets.Functional(), task, validated=True, **({"lr": 2e-3, "steps": 250} | changes))


def _mlp(
    task: tasks.Task | None = None,
    drop: float = 0.0,
    width: int = 64,
    activation: nets.Activation = nn.ReLU,
    **changes: Any,
) -> Training:
    task = task or tasks.digits()
    model = nets.mlp((task.x.shape[1], width, width, task.classes), activation, drop)
    return fit(model, task, validated=True, **({"lr": 2e-3, "steps": 300} | changes))


def _tables(name: str = "wine", scaled: bool = True, **changes: Any) -> Training:
    return _mlp(tasks.table(name, scaled), **({"batch": 32, "steps": 250, "width": 32} | changes))


def _deep(
    depth: int = 12,
    width: int = 48,
    activation: nets.Activation = nn.ReLU,
    norm: bool = False,
    init: bool = True,
    **changes: Any,
) -> Training:
    model = nets.mlp((64, *[width] * depth, 10), activation, norm=norm)
    if init and not norm:
        f.he(model)
    return fit(model, tasks.digits(), validated=True, **({"lr": 1e-3, "steps": 300} | changes))


def _bounded(activation: nets.Activation = nn.Tanh, depth: int = 4, **changes: Any) -> Training:
    model = nets.mlp((64, *[48] * depth, 10), activation)
    task = changes.pop("task", tasks.digits())
    return fit(model, task, validated=True, **({"lr": 3e-3, "steps": 300} | changes))


cnn = Family("cnn", 0.1, 0.93, _lecture)
small = Family("small-cnn", 0.1, 0.97, _small_cnn)
shallow = Family("mlp", 0.1, 0.96, _mlp)
tables = Family("tables", 0.4, 0.97, _tables)
deep = Family("deep-mlp", 0.1, 0.94, _deep)
bounded = Family("bounded", 0.1, 0.95, _bounded)
NAN, INF = float("nan"), float("inf")

SCENARIOS = [
    cnn.healthy("plain"),
    cnn.healthy("bn-lr04", lr=0.4, norm=True),
    cnn.healthy("one-cycle", lr=0.3, schedule=f.one_cycle, norm=True),
    cnn.healthy("leaky", activation=lambda: nn.LeakyReLU(0.1)),
    cnn.healthy("momentum-warm-restarts", lr=0.02, optim={"momentum": 0.9}, schedule=f.warm_restarts),
    cnn.healthy("loss-x4096", lr=0.1 / 4096, scale=4096.0),
    cnn.failing("lecture-lr06", lr=0.6, raw=True, batch=256),
    cnn.failing("lecture-kaiming-lr06", lr=0.6, batch=256),
    cnn.failing("lr-1", lr=1.0),
    cnn.failing("lr-10", lr=10.0),
    cnn.failing("adam-lr-01", opt="adam", lr=0.1),
    cnn.failing("adam-lr-003-crash", opt="adam", lr=0.03, raw=True),
    cnn.failing("default-init-small-lr", raw=True, lr=0.01),
    cnn.failing("zero-init", prepare=f.constant(0.0), curable=True),
    cnn.failing("weights-x6", prepare=f.weights(6.0)),
    small.healthy("plain"),
    small.healthy("outlier-heals", poison=f.outliers(30.0, f.once(120), 0.1)),
    small.healthy("bf16", autocast=torch.bfloat16),
    small.healthy("batch-2", batch=2, lr=5e-4, steps=800),
    small.healthy("raw-but-adam", task=tasks.raw_digits()),
    small.healthy("half-frozen", prepare=f.freeze("conv1")),
    small.failing("raw-sgd", task=tasks.raw_digits(), opt="sgd", lr=0.1),
    small.failing("shuffled-labels", poison=f.other_labels(10), curable=False),
    small.failing("no-zero-grad", zero_grad=False, opt="sgd", lr=0.05, curable=False),
    small.failing("nan-input", poison=f.bad_values(NAN, f.once(60))),
    small.failing("inf-inputs-often", poison=f.bad_values(INF, f.each(10, 30))),
    small.failing("empty-masks", poison=f.ignored(f.each(40))),
    small.failing("dead-biases", prepare=f.biases(-30.0)),
    small.failing("constant-input", poison=f.constant_input, curable=False),
    small.failing("decay-too-large", opt="adamw", lr=2e-3, optim={"weight_decay": 100.0}, curable=False),
    shallow.healthy("plain"),
    shallow.healthy("sgd", opt="sgd", lr=0.1),
    shallow.healthy("heavy-dropout", drop=0.5, steps=400),
    shallow.healthy("label-noise", poison=f.random_labels(10, 0.4), steps=400),
    shallow.healthy("very-few-steps", steps=25, lr=0.01, batch=128),
    shallow.healthy("very-many-steps", steps=1500, lr=5e-4),
    shallow.healthy("accumulate-4", accumulate=4, batch=16, steps=200),
    shallow.healthy("smoothed-floor", criterion=f.smoothed),
    shallow.healthy("negative-loss", criterion=f.shifted(-3.0)),
    shallow.healthy("pruned-80", prepare=f.pruned(0.8), steps=500, width=128),
    shallow.healthy("tasks-switch", order=f.halves(tasks.digits().y, 500), steps=500),
    shallow.failing("lr-3", opt="sgd", lr=3.0),
    shallow.failing("lr-30", opt="sgd", lr=30.0),
    shallow.failing("adam-lr-1", lr=1.0),
    shallow.failing("tiny-lr", lr=1e-7),
    shallow.failing("tiny-lr-sgd", opt="sgd", lr=1e-5),
    shallow.failing("tiny-clip", opt="sgd", lr=0.05, clip=1e-4, curable=False),
    shallow.failing("wrong-sign", criterion=f.wrong_sign, curable=False),
    shallow.failing("detached", criterion=f.detached, curable=False),
    shallow.failing("no-parameters", parameters=lambda m: [nn.Parameter(torch.zeros(3))], curable=False),
    shallow.failing("dropout-99", drop=0.99, curable=False),
    shallow.failing("sorted", order=f.by_label(tasks.digits().y), opt="sgd", lr=0.3, curable=False),
    shallow.failing("schedule-bug", opt="sgd", lr=0.1, schedule=f.jump(0.4, 300.0)),
    shallow.failing(
        "one-class-a-batch", order=f.one_class_a_batch(tasks.digits().y, 20), opt="sgd", lr=0.2, curable=False
    ),
    tables.healthy("wine"),
    tables.healthy("breast-cancer", name="breast_cancer"),
    tables.healthy("iris", name="iris"),
    tables.healthy("wine-full-batch-sgd", opt="sgd", lr=0.1, batch=142, optim={"momentum": 0.9}),
    tables.failing("wine-raw-sgd", scaled=False, opt="sgd", lr=0.1),
    tables.failing("cancer-raw-sgd", name="breast_cancer", scaled=False, opt="sgd", lr=0.05),
    tables.failing("wine-zero-init", prepare=f.constant(0.0)),
    tables.failing("wine-constant-init", prepare=f.constant(0.05), curable=True),
    tables.failing("cancer-log-naive", name="breast_cancer", scaled=False, criterion=f.naive_log, lr=1e-2),
    tables.failing("iris-shuffled", name="iris", poison=f.other_labels(3), curable=False),
    deep.healthy("plain"),
    deep.healthy("norm-sgd", norm=True, opt="sgd", lr=0.05),
    deep.healthy("one-cycle", schedule=f.one_cycle, lr=2e-3),
    deep.healthy("late-start", schedule=f.late_start, steps=400),
    deep.failing("default-init-20-sgd", depth=20, init=False, opt="sgd", lr=0.01),
    deep.failing("sigmoid-10", depth=10, activation=nn.Sigmoid),
    deep.failing("sgd-lr-1", opt="sgd", lr=1.0),
    deep.failing("sgd-lr-01-momentum", opt="sgd", lr=0.1, optim={"momentum": 0.95}),
    deep.failing("weights-x3", prepare=f.weights(3.0), opt="sgd", lr=0.01),
    deep.failing("weights-x03", prepare=f.weights(0.3), opt="sgd", lr=0.01),
    deep.failing("biases-dead", prepare=f.biases(-8.0)),
    deep.failing("adam-lr-003", lr=0.03),
    bounded.healthy("tanh"),
    bounded.healthy("sigmoid-2", activation=nn.Sigmoid, depth=2, lr=5e-3, steps=400),
    bounded.healthy("tanh-warm-up", schedule=f.warmup(0.2), lr=5e-3),
    bounded.healthy("softsign-sgd", activation=nn.Softsign, opt="sgd", lr=0.3, steps=400),
    bounded.failing("tanh-saturated", prepare=f.weights(100.0)),
    bounded.failing("tanh-saturated-sgd", prepare=f.weights(40.0), opt="sgd", lr=0.1),
    bounded.failing("sigmoid-6-sgd", activation=nn.Sigmoid, depth=6, opt="sgd", lr=0.1),
    bounded.failing("sigmoid-6-lr-10", activation=nn.Sigmoid, depth=6, opt="sgd", lr=10.0),
    bounded.failing(
        "raw-sigmoid", task=tasks.raw_digits(), activation=nn.Sigmoid, prepare=f.weights(20.0), depth=4
    ),
    bounded.failing("lr-jump", opt="sgd", lr=0.1, schedule=f.jump(0.3, 1000.0)),
    bounded.failing("tiny-init-sgd", prepare=f.weights(0.02), opt="sgd", lr=0.05),
]
