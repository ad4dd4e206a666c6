"""Every signal's name, unit and shape, and the frame that carries them: the one vocabulary of all rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

HIST_BINS = 50
"""Equal bins of abs(x) on 0..HIST_TOP; one more bin behind them counts what lies above."""
HIST_TOP = 10.0


@dataclass(frozen=True)
class Signal:
    """A named quantity that a rule can read."""

    name: str
    per: Literal["layer", "run"]
    unit: str
    meaning: str
    positive: bool = True
    """Never below zero, so that robust statistics may work on its logarithm."""


def _table(*signals: Signal) -> dict[str, Signal]:
    return {signal.name: signal for signal in signals}


SIGNALS: Mapping[str, Signal] = _table(
    Signal("act.mean", "layer", "as the output", "mean of the output", positive=False),
    Signal("act.std", "layer", "as the output", "standard deviation of the output"),
    Signal("act.rms", "layer", "as the output", "root of the mean square of the output"),
    Signal("act.absmax", "layer", "as the output", "largest abs(x) of the output"),
    Signal("act.near_zero", "layer", "share", "abs(x) in the two lowest of 50 equal bins on 0..10"),
    Signal("act.tiny", "layer", "share", "abs(x) below 1 % of the layer's own rms"),
    Signal("act.dead", "layer", "share of units", "units whose output is zero for the whole batch"),
    Signal("act.dormant", "layer", "share of units", "units with mean abs(x) at most 0.025 of the layer's"),
    Signal("act.variation", "layer", "share", "spread of each unit over the batch, averaged, over the rms"),
    Signal("act.saturated", "layer", "share", "elements on the flat part of a bounded activation"),
    Signal("act.nonfinite", "layer", "count", "NaN and Inf in the output, over every element"),
    Signal("grad.norm", "layer", "as the gradient", "Euclidean norm of the parameters' gradients"),
    Signal("grad.rms", "layer", "as the gradient", "root of the mean square of the gradients"),
    Signal("grad.absmax", "layer", "as the gradient", "largest abs(x) of the gradients"),
    Signal("grad.zero", "layer", "share", "entries of the gradients that are exactly zero"),
    Signal("grad.nonfinite", "layer", "count", "NaN and Inf in the gradients, over every element"),
    Signal("weight.norm", "layer", "as the weight", "Euclidean norm of the parameters"),
    Signal("weight.rms", "layer", "as the weight", "root of the mean square of the parameters"),
    Signal("weight.absmax", "layer", "as the weight", "largest abs(x) of the parameters"),
    Signal("weight.nonfinite", "layer", "count", "NaN and Inf in the parameters, over every element"),
    Signal("update.ratio", "layer", "share", "norm of the last update over the norm of the weights"),
    Signal("optim.rms_ratio", "layer", "share", "sqrt(mean(g^2 / v)) of optimizers with a second moment"),
    Signal("loss", "run", "loss", "the loss given to the guard", positive=False),
    Signal("grad_norm", "run", "as the gradient", "Euclidean norm of all gradients together"),
    Signal("lr", "run", "per step", "learning rate of the first parameter group"),
    Signal("lr_share", "run", "share", "lr, of the largest that its schedule knows (initial_lr, max_lr)"),
    Signal("dropout", "run", "share", "largest share that a dropout module in training drops"),
    Signal("loss_scale", "run", "factor", "scale of the GradScaler"),
    Signal("step_time", "run", "seconds", "time since the step before"),
    Signal("input.mean", "run", "as the input", "mean of the first floating input", positive=False),
    Signal("input.std", "run", "as the input", "standard deviation of the first floating input"),
    Signal("input.absmax", "run", "as the input", "largest abs(x) of the first floating input"),
    Signal("input.nonfinite", "run", "count", "NaN and Inf in the first floating input"),
)
"""All signals but `act.hist` (counts, not a number a rule compares) and `metric.NAME` (the user's own)."""

METRIC = "metric."
"""Prefix of the scalars that the user logs."""


def signal(name: str) -> Signal | None:
    """Look a signal up by name; `metric.NAME` exists for every name. None if there is no such signal."""
    if name.startswith(METRIC) and len(name) > len(METRIC):
        return Signal(name, "run", "the user's", "logged by the user", positive=False)
    return SIGNALS.get(name)


class Layer(NamedTuple):
    """A module that the guard watches: its dotted path in the model, and the name of its class."""

    name: str
    type: str


class Vector(NamedTuple):
    """One number for each layer, in depth order.

    `known` is False where nothing was measured; a NaN that is known was measured.
    """

    values: NDArray[np.float32]
    known: NDArray[np.bool_]


@dataclass
class Frame:
    """All signals at one step. What was not measured is not in it."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict[str, float])
    """Signals per run, and `metric.NAME`."""
    vectors: dict[str, Vector] = field(default_factory=dict[str, Vector])
    """Signals per layer, each of shape [layers]."""
    hist: NDArray[np.int32] | None = None
    """`act.hist`, shape [layers, HIST_BINS + 1]: counts of sampled abs(x); all zero where not measured."""
