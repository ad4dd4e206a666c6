"""Residual nets, transformers with the norm before and after, vision transformers, recurrent nets."""

from __future__ import annotations

from typing import Any

import torch

from arena import faults as f
from arena import tasks
from arena.families import nets
from arena.fitting import fit
from arena.training import Family, Training


def _residual(norm: bool = True, blocks: int = 8, width: int = 64, **changes: Any) -> Training:
    task = changes.pop("task", tasks.digits())
    return fit(nets.Residual(width, blocks, norm), task, **({"lr": 1e-3, "steps": 250} | changes))


def _language(post: bool = False, blocks: int = 2, drop: float = 0.0, **changes: Any) -> Training:
    model = nets.Transformer(post=post, blocks=blocks, drop=drop)
    return fit(model, tasks.letters(), **({"lr": 1e-2, "steps": 250, "batch": 16} | changes))


def _post(**changes: Any) -> Training:
    return _language(**({"post": True, "lr": 5e-3, "blocks": 3} | changes))


def _vit(drop: float = 0.0, post: bool = False, **changes: Any) -> Training:
    task = changes.pop("task", tasks.digits())
    return fit(nets.Vit(drop=drop, post=post), task, **({"lr": 3e-3, "steps": 300} | changes))


def _recurrent(kind: str, **defaults: Any) -> Any:
    def base(inputs: int = 8, width: int = 48, layers: int = 1, **changes: Any) -> Training:
        task = changes.pop("task", tasks.digits())
        return fit(
            nets.Recurrent(kind, width, inputs, layers),
            task,
            **({"lr": 5e-3, "steps": 250} | defaults | changes),
        )

    return base


def _cell(relu: bool = False, inputs: int = 8, width: int = 48, **changes: Any) -> Training:
    task = changes.pop("task", tasks.digits())
    return fit(nets.Cell(width, inputs, relu), task, **({"lr": 2e-3, "steps": 250} | changes))


residual = Family("residual", 0.1, 0.96, _residual)
pre = Family("pre-norm", -3.35, -2.05, _language)
post = Family("post-norm", -3.35, -2.1, _post)
vit = Family("vit", 0.1, 0.93, _vit)
rnn = Family("rnn", 0.1, 0.93, _cell)
lstm = Family("lstm", 0.1, 0.95, _recurrent("LSTM"))
gru = Family("gru", 0.1, 0.95, _recurrent("GRU"))
NAN = float("nan")


def logits_grow(model: torch.nn.Module, optimizer: Any, p: float) -> None:
    """Queries and keys grow by two percent a step, as in a run without norms on them."""
    if p > 0.2:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "qkv.weight" in name:
                    parameter.mul_(1.04)


SCENARIOS = [
    residual.healthy("plain"),
    residual.healthy("no-norm", norm=False, lr=5e-4),
    residual.healthy("sgd-warm-restarts", opt="sgd", lr=0.1, schedule=f.warm_restarts),
    residual.healthy("frozen-blocks", prepare=f.freeze("blocks.3")),
    residual.failing("no-norm-sgd-lr", norm=False, blocks=16, opt="sgd", lr=0.5),
    residual.failing("no-norm-weights-x4", norm=False, blocks=12, prepare=f.weights(4.0), opt="sgd", lr=0.01),
    residual.failing("lr-5", opt="sgd", lr=5.0, optim={"momentum": 0.9}),
    residual.failing("adam-lr-03", lr=0.3),
    residual.failing("frozen-all", prepare=f.freeze(""), curable=False),
    residual.failing(
        "frozen-but-stem",
        prepare=lambda m: (f.freeze("blocks")(m), f.freeze("head")(m), f.freeze("norms")(m)),
        opt="sgd",
        lr=1e-3,
        curable=False,
    ),
    residual.failing("outliers-often", poison=f.outliers(1e4, f.each(5), 0.05), opt="sgd", lr=0.1),
    pre.healthy("plain"),
    pre.healthy("warm-up", schedule=f.warmup(0.2)),
    pre.healthy("one-cycle-adamw", opt="adamw", schedule=f.one_cycle, lr=2e-2),
    pre.healthy("bf16", autocast=torch.bfloat16),
    pre.healthy("dropout", drop=0.2),
    pre.healthy("clip-1", clip=1.0),
    pre.healthy("loss-x4096", scale=4096.0),
    pre.failing("lr-1", lr=1.0),
    pre.failing("lr-03-late", lr=3e-3, schedule=f.jump(0.3, 300.0)),
    pre.failing("shuffled", poison=f.other_labels(64), curable=False),
    pre.failing("sgd-tiny", opt="sgd", lr=1e-3),
    pre.failing("nan-loss", before=lambda m, o, p: p == 0.4 and torch.nn.init.constant_(m.lm_head.bias, NAN)),
    pre.failing("decay-10", opt="adamw", optim={"weight_decay": 30.0}, curable=False),
    pre.failing("logits-growing", before=logits_grow, curable=False),
    pre.failing("wrong-sign", criterion=f.wrong_sign, curable=False),
    post.healthy("plain", blocks=2, lr=3e-3),
    post.healthy("warm-up", schedule=f.warmup(0.2), blocks=2),
    post.healthy("dropout", drop=0.1, blocks=2, lr=3e-3),
    post.failing("deep-no-warm-up", blocks=8, lr=2e-2, steps=120),
    post.failing("lr-03", lr=0.3),
    post.failing("lr-schedule-bug", schedule=f.jump(0.5, 300.0), lr=3e-3, blocks=2),
    post.failing("tiny-clip", opt="sgd", lr=0.1, clip=1e-5, curable=False),
    post.failing("constant-init", prepare=f.constant(0.02)),
    vit.healthy("plain"),
    vit.healthy("warm-up-adamw", opt="adamw", schedule=f.warmup(0.1)),
    vit.healthy("label-noise", poison=f.random_labels(10, 0.3), steps=400),
    vit.healthy("one-outlier", poison=f.outliers(100.0, f.once(150), 0.1)),
    vit.failing("lr-05", lr=0.5),
    vit.failing("sgd-lr-20", opt="sgd", lr=20.0),
    vit.failing("shuffled", poison=f.other_labels(10), curable=False),
    vit.failing("nan-batches", poison=f.bad_values(NAN, f.each(25, 60))),
    vit.failing("dropout-99-post", drop=0.995, post=True, lr=0.1, steps=200, curable=False),
    vit.failing("exploding-moments", optim={"betas": (0.9, 0.5), "eps": 1e-30}, lr=0.1),
    rnn.healthy("tanh"),
    rnn.healthy("relu", relu=True, clip=1.0),
    rnn.healthy("clip-sgd", opt="sgd", lr=0.1, clip=1.0, steps=400),
    rnn.failing("explode", relu=True, prepare=f.weights(3.0), opt="sgd", lr=0.1),
    # Without the fault, at the best of seven rates from 0.05 to 3.2, orthogonal or not: 0.45 and 0.57.
    rnn.failing(
        "explode-64-steps",
        relu=True,
        inputs=1,
        prepare=f.weights(1.6),
        opt="sgd",
        lr=0.05,
        steps=60,
        curable=False,
    ),
    rnn.failing(
        "vanish-64-steps",
        inputs=1,
        prepare=f.weights(0.2),
        opt="sgd",
        lr=0.05,
        steps=80,
        curable=False,
    ),
    rnn.failing("tanh-saturated", prepare=f.weights(30.0)),
    rnn.failing("relu-lr", relu=True, lr=0.2),
    rnn.failing("sorted", order=f.one_class_a_batch(tasks.digits().y, 10), opt="sgd", lr=0.1, curable=False),
    lstm.healthy("plain"),
    lstm.healthy("two-layers", layers=2),
    lstm.healthy("warm-restarts", schedule=f.warm_restarts),
    lstm.failing("lr-1", lr=1.0),
    lstm.failing("sgd-tiny", opt="sgd", lr=1e-3),
    # At the best of seven rates from 0.05 to 3.2, orthogonal or not, it comes to 0.26.
    lstm.failing("64-steps-sgd", inputs=1, opt="sgd", lr=0.02, steps=100, curable=False),
    lstm.failing("decay", opt="adamw", optim={"weight_decay": 50.0}, curable=False),
    gru.healthy("plain"),
    gru.healthy("batch-8", batch=8, steps=500, lr=2e-3),
    gru.failing("lr-2", lr=2.0),
    gru.failing("weights-x50", prepare=f.weights(50.0)),
    gru.failing("inf-input", poison=f.bad_values(float("inf"), f.once(50))),
    gru.failing("shuffled", poison=f.other_labels(10), curable=False),
]
