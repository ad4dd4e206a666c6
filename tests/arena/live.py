"""Whether a verdict holds when the training is really run with another scale of its loss, or another width.

    python tests/arena/live.py [--seeds 2] [--jobs 2]

A fixed set of scenarios is trained bare as it is, with its loss times 1e-4 and 1e4 and an optimizer set so
that the training is the same but for rounding, and with layers of half and of double the width. Prints how
many runs get the verdict of the run as it is: left alone, or ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from arena.catalog import SCENARIOS
from arena.crashes import crashes
from arena.figures import Share
from arena.judge import judge
from arena.record import Outcome, run_bare
from arena.training import Scenario, Training
from stepguard.rules.packs import load_rules

WIDTHS = {"mlp": 64, "deep-mlp": 48, "residual": 64, "rnn": 48, "lstm": 48, "gru": 48}
"""The families that can be built at another width, and the width that they have."""

TRIED = (
    *("mlp/plain", "mlp/sgd", "mlp/label-noise", "mlp/smoothed-floor", "mlp/negative-loss"),
    *("mlp/lr-3", "mlp/adam-lr-1", "mlp/tiny-lr", "mlp/wrong-sign", "mlp/schedule-bug"),
    *("deep-mlp/plain", "deep-mlp/norm-sgd", "deep-mlp/one-cycle"),
    *("deep-mlp/default-init-20-sgd", "deep-mlp/weights-x3", "deep-mlp/weights-x03", "deep-mlp/biases-dead"),
    *("residual/plain", "residual/sgd-warm-restarts", "residual/frozen-blocks"),
    *("residual/adam-lr-03", "residual/no-norm-weights-x4", "residual/lr-5"),
    *("rnn/tanh", "rnn/clip-sgd", "rnn/explode", "lstm/plain", "lstm/decay"),
    *("gru/plain", "gru/weights-x50", "gru/shuffled"),
)


def rescaled(training: Training, by: float) -> Training:
    """The same training with its loss times `by`: SGD has so much smaller a rate, Adam so much larger an eps.

    Both then make the same updates but for rounding, with weight decay that goes through the gradient in
    proportion; clipping adds 1e-6 to the norm, which is told where gradients are as small.
    """
    loss, validate = training.loss, training.validate
    training.loss = lambda t: loss(t) * by
    training.validate = None if validate is None else lambda: validate() * by
    training.clip = None if training.clip is None else training.clip * by
    for group in training.optimizer.param_groups:
        if "eps" in group:
            group["eps"] *= by
        else:
            group["lr"] /= by
        if not isinstance(training.optimizer, torch.optim.AdamW):
            group["weight_decay"] *= by
    if training.scheduler is not None and "eps" not in training.optimizer.defaults:
        training.scheduler.base_lrs = [rate / by for rate in training.scheduler.base_lrs]
    return training


def with_scale(scenario: Scenario, by: float) -> Scenario:
    """The scenario with its loss times `by`."""
    return replace(scenario, build=lambda: rescaled(scenario.build(), by))


def with_width(scenario: Scenario, by: float) -> Scenario:
    """The scenario with layers `by` times as wide."""
    return replace(scenario, build=lambda: scenario.build(width=round(WIDTHS[scenario.family] * by)))


VARIANTS: Mapping[str, Callable[[Scenario], Scenario]] = {
    "as it is": lambda scenario: scenario,
    "loss x 1e-4": partial(with_scale, by=1e-4),
    "loss x 1e4": partial(with_scale, by=1e4),
    "half the width": partial(with_width, by=0.5),
    "double the width": partial(with_width, by=2.0),
}


@dataclass(frozen=True)
class Found:
    """What became of one run."""

    label: str
    """By its own outcome."""
    by: str | None
    """The rule that ended it."""


def run(scenario: Scenario, seed: int) -> Found:
    """Train it bare and judge it by the default pack."""
    recording, raw = run_bare(scenario, seed)
    steps = len(recording.frames)
    outcome = Outcome(
        scenario.name, scenario.family, scenario.intent, seed, steps, raw, crashes(recording), 0.0
    )
    return Found(outcome.label, judge(load_rules("default"), outcome, recording, total=True, alone=False).by)


def _work(job: tuple[str, str, int]) -> Found:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    variant, name, seed = job
    return run(VARIANTS[variant](SCENARIOS[name]), seed)


def main() -> None:
    """Train, judge, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each scenario (default: 2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    jobs = [(variant, name, seed) for variant in VARIANTS for name in TRIED for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(_work, jobs), strict=True))
    table = Table("trained", "same verdict", "other verdict")
    for variant in list(VARIANTS)[1:]:
        pairs = {
            (name, seed): (found["as it is", name, seed], found[variant, name, seed])
            for name in TRIED
            for seed in range(args.seeds)
        }
        other = {run: pair for run, pair in pairs.items() if len({one.by is None for one in pair}) == 2}
        told = (
            f"{name}:{seed} {a.label} {a.by}, then {b.label} {b.by}" for (name, seed), (a, b) in other.items()
        )
        table.add_row(variant, str(Share(len(pairs) - len(other), len(pairs))), "; ".join(told))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
