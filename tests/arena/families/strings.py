"""Dilated convolutions that write source text, taggers of its letters, transformers that turn it round."""

from __future__ import annotations

import configparser
import csv
import inspect
import io
import keyword
import textwrap
import token
import tokenize
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arena import faults as f
from arena import tasks
from arena.families import blocks
from arena.fitting import fit
from arena.tasks import VOCABULARY, Task
from arena.training import Family, Training

NAN, INF = float("nan"), float("inf")


def _dilated(dilations: tuple[int, ...] = (1, 2, 4, 8), skip: bool = True, **changes: Any) -> Training:
    settings = {"lr": 1e-2, "steps": 200, "batch": 16}
    return fit(blocks.Dilated(dilations=dilations, skip=skip), tasks.letters(), **(settings | changes))


KINDS = 7
"""Kinds of letters: between tokens, keyword, name, number, operator, text in quotes, comment."""


def _kind(found: tokenize.TokenInfo) -> int:
    if found.type == token.NAME:
        return 1 if keyword.iskeyword(found.string) else 2
    return {token.NUMBER: 3, token.OP: 4, token.STRING: 5, token.COMMENT: 6}.get(found.type, 0)


def _tags(text: str) -> list[int]:
    """The kind of each letter of a source."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tags = [0] * len(text)
    for found in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = _kind(found)
        if kind:
            first, last = (starts[row - 1] + column for row, column in (found.start, found.end))
            tags[first:last] = [kind] * (last - first)
    return tags


@cache
def _tagged(length: int = 32) -> Task:
    """Stretches of three modules' sources, and the kind of each letter."""
    texts = [inspect.getsource(module) for module in (configparser, csv, textwrap)]
    x, y = torch.cat(tasks.spelled(texts)), torch.tensor([t for text in texts for t in _tags(text)])
    whole = len(x) - len(x) % length
    return tasks.split(x[:whole].view(-1, length), y[:whole].view(-1, length), KINDS)


@torch.no_grad()
def _places(model: nn.Module, task: Task) -> float:
    """The share of the places that are right, on the test part."""
    model.eval()
    out = model(task.test_x)
    right = (out.argmax(-1) == task.test_y).float()
    return float(right.mean()) if bool(out.isfinite().all()) else NAN


def _tagger(drop: float = 0.0, **changes: Any) -> Training:
    settings = {"lr": 1e-2, "steps": 200, "batch": 16, "score": _places}
    return fit(blocks.Tagger(KINDS, drop=drop), _tagged(), **(settings | changes))


def rare_first(least: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Kinds weighted by one over their count in the batch, by hand; an absent kind is 0 times infinity
    where `least`, which is added to all counts, is 0."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        places = F.one_hot(y, KINDS).float().flatten(0, 1)
        weights = len(places) / (places.sum(0) + least) / KINDS
        return -(places * out.log_softmax(-1).flatten(0, 1) * weights).sum(1).mean()

    return loss


def masked_mean(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean over the places of a mask, by hand; now and then nothing is in the mask: 0 / 0."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        mask = (torch.rand(y.shape) < 0.5).float() * (torch.rand(()) < share)
        each = F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
        return (each * mask).sum() / mask.sum()

    return loss


LENGTH = 8


@cache
def _turned() -> Task:
    """Eight letters and the same from the end: side by side as inputs, the second as targets."""
    text = torch.cat(tasks.codes())[:80_000].view(-1, LENGTH)
    varied = text[(text[:, 1:] != text[:, :-1]).sum(1) >= 5]
    return tasks.split(torch.cat([varied, varied.flip(1)], 1), varied.flip(1), VOCABULARY)


def padded(model: nn.Module, x: Tensor, least: int = 1) -> Tensor:
    """Some last letters of the source are hidden as padding; where all are, nothing is left to attend to."""
    kept = torch.randint(least, 3 * LENGTH, (len(x), 1))
    return model(x, torch.arange(LENGTH) >= kept)


def times_infinity(model: nn.Module, x: Tensor) -> Tensor:
    """Letters that never come are ruled out by a mask times minus infinity: 0 times infinity elsewhere."""
    return model(x) + (torch.arange(VOCABULARY) == VOCABULARY - 1) * -INF


def _reverse(depth: int = 1, first: bool = True, drop: float = 0.0, **changes: Any) -> Training:
    settings = {"lr": 3e-3, "steps": 200, "batch": 48, "score": _places}
    return fit(blocks.Translator(depth=depth, first=first, drop=drop), _turned(), **(settings | changes))


dilated = Family("dilated", -3.3, -1.77, _dilated)
tagger = Family("tagger", 0.307, 0.86, _tagger)
reverse = Family("reverse", 0.126, 1.0, _reverse)


SCENARIOS = [
    dilated.healthy("plain"),
    dilated.healthy("adagrad-clip", opt="adagrad", lr=0.05, clip=0.5),
    dilated.healthy("accumulate-8", accumulate=8, batch=4, steps=90, lr=1.5e-2),
    dilated.healthy(
        "one-cycle-sgd", opt="sgd", lr=1.5, optim={"momentum": 0.9}, schedule=f.one_cycle, steps=250
    ),
    dilated.healthy("floor-of-5", criterion=f.shifted(5.0)),
    dilated.healthy("frozen-letters", prepare=f.freeze("embed")),
    dilated.failing("lr-x100", lr=1.0),
    # At the best of five paces from 0.003 to 0.3, initialised anew or not, it comes to 0.50: eight gates in a
    # row, each of which halves what it lets through.
    dilated.failing(
        "deep-no-skip", skip=False, dilations=(1, 2, 4, 8, 1, 2, 4, 8), opt="sgd", lr=0.1, curable=False
    ),
    dilated.failing("empty-masks", criterion=masked_mean(0.99)),
    dilated.failing(
        "climbs-from-half", criterion=f.wrong_sign, schedule=lambda p: -1.0 if p < 0.5 else 1.0, curable=False
    ),
    dilated.failing("constant-input", poison=lambda t, x, y: (torch.zeros_like(x), y), curable=False),
    dilated.failing("restart-x300", schedule=f.jump(0.6, 300.0), lr=5e-3),
    tagger.healthy("weighted", criterion=rare_first(8)),
    tagger.healthy("label-noise", poison=f.random_labels(KINDS, 0.3)),
    tagger.healthy("batch-2", batch=2, lr=3e-3, steps=500),
    tagger.healthy("late-start", schedule=f.late_start),
    tagger.healthy("heavy-dropout", drop=0.4),
    tagger.failing("weights-of-absent-kinds", criterion=rare_first(0), batch=8),
    tagger.failing("sgd-lr-of-adam", opt="sgd", lr=1e-3),
    tagger.failing("weights-x40", prepare=f.weights(40.0)),
    tagger.failing("shuffled", poison=f.other_labels(KINDS), curable=False),
    tagger.failing("dropout-99", drop=0.99, steps=120, curable=False),
    tagger.failing("decay-for-lr", opt="adamw", lr=1e-2, optim={"weight_decay": 60.0}, curable=False),
    reverse.healthy("plain"),
    reverse.healthy("warm-up-post", first=False, schedule=f.warmup(0.2)),
    reverse.healthy("smoothed", criterion=f.smoothed),
    reverse.healthy("some-all-padded", forward=partial(padded, least=0)),
    reverse.healthy("loss-x4096-clip", scale=4096.0, clip=1.0),
    reverse.failing("mask-times-infinity", forward=times_infinity, curable=False),
    reverse.failing("lr-x100", lr=0.3),
    reverse.failing("deep-post-no-warm-up", depth=3, first=False, lr=1e-2, steps=120),
    reverse.failing("tiny-clip", opt="sgd", lr=0.3, clip=1e-4, curable=False),
    reverse.failing("second-moment-too-short", optim={"betas": (0.9, 0.3), "eps": 1e-30}, lr=0.05),
]
