"""Trainings whose settings are drawn at random, as people try them: nobody made them odd or hard on purpose.

    python tests/arena/drawn.py [--runs 300] [--first 0] [--jobs 2] [--json FILE]

Flow: from the number of a run come task, network, optimizer, learning rate and all else; it is trained bare
but seen, and judged under the default pack. Prints how many failing runs were ended and how many healthy
ones, labelled by outcome as in the arena, and the settings of those that were judged wrongly. Failing are
also runs that learn, but too slowly for their length: those that learned next to nothing are counted apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from arena import faults, tasks
from arena.crashes import crashes
from arena.families import nets
from arena.figures import Share
from arena.fitting import fit
from arena.judge import judge
from arena.record import Outcome, run_bare
from arena.training import Scenario, Training
from stepguard.rules.packs import load_rules

TASKS: Mapping[str, tuple[Callable[[], tasks.Task], float, float]] = {
    "digits": (tasks.digits, 0.1, 0.96),
    "raw digits": (tasks.raw_digits, 0.1, 0.96),
    "lecture": (tasks.mnist, 0.1, 0.95),
    "wine": (partial(tasks.table, "wine"), 0.4, 0.97),
    "raw wine": (partial(tasks.table, "wine", False), 0.4, 0.97),
    "cancer": (partial(tasks.table, "breast_cancer"), 0.63, 0.96),
    "diabetes": (tasks.diabetes, 0.0, 0.45),
    "raw diabetes": (partial(tasks.diabetes, False), 0.0, 0.45),
}
"""Each with the scores of knowing nothing and of a good run."""
NOTHING = 0.2
"""The normalised score below which next to nothing was learned."""
RATES = {"sgd": 0.1, "momentum": 0.03, "adam": 2e-3, "adamw": 2e-3, "rmsprop": 1e-3}
ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.SiLU)
SCHEDULES: Mapping[str, Callable[[float], float] | None] = {
    "constant": None,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "warm-up": lambda progress: min(1.0, 10 * progress + 0.05),
    "one cycle": lambda progress: 3 * min(progress / 0.3 + 0.04, (1 - progress) / 0.7 + 1e-4),
    "steps": lambda progress: 0.3 ** int(3 * progress),
}


def settings(number: int) -> dict[str, Any]:
    """What a run is drawn with; learning rates lie around the usual ones, one in three five times off."""
    draw = random.Random(number)
    optimizer = draw.choice(list(RATES))
    return {
        "task": draw.choice([*TASKS, "digits", "lecture"]),
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
        "weights": draw.choice([1.0, 1.0, 1.0, 1.0, 0.3, 3.0]),
        "length known": draw.random() < 0.7,
    }


def build(drawn: Mapping[str, Any]) -> Training:
    """The training that was drawn."""
    task = TASKS[drawn["task"]][0]()
    if drawn["task"] == "lecture":
        model = nets.lecture_cnn(drawn["activation"], drawn["norm"])
    else:
        widths = (task.x.shape[1], *[drawn["width"]] * drawn["depth"], task.classes or 1)
        model = nets.mlp(widths, drawn["activation"], drawn["drop"], drawn["norm"])
    optimizer = drawn["optimizer"]
    momentum = {"momentum": 0.9} if optimizer == "momentum" else {}
    return fit(
        model,
        task,
        lr=drawn["lr"],
        opt="sgd" if momentum else optimizer,
        steps=drawn["steps"],
        batch=drawn["batch"],
        schedule=SCHEDULES[drawn["schedule"]],
        prepare=faults.weights(drawn["weights"]),
        optim={"weight_decay": drawn["decay"]} | momentum,
    )


@dataclass(frozen=True)
class Drawn:
    """How one run ended, and what the rules made of it."""

    number: int
    score: float
    crashed: bool
    steps: int
    stopped: int | None
    by: str | None

    @property
    def label(self) -> str:
        """As in the arena; a run that crashed in its youth and came back is none of both."""
        label = "failing" if self.score < 0.5 else "healthy" if self.score > 0.8 else "between"
        return "between" if label == "healthy" and self.crashed else label


def run(number: int) -> Drawn:
    """Train and judge, in a worker process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    drawn = settings(number)
    _, chance, reference = TASKS[drawn["task"]]
    scenario = Scenario(f"drawn/{number}", "drawn", "drawn", partial(build, drawn), chance, reference)
    recording, score = run_bare(scenario, number)
    crash = crashes(recording)
    outcome = Outcome(scenario.name, "drawn", "drawn", number, drawn["steps"], score, crash, 0.0)
    verdict = judge(load_rules("default"), outcome, recording, total=drawn["length known"], alone=False)
    normal = scenario.normalised(score)
    return Drawn(number, normal, crash is not None, drawn["steps"], verdict.stopped, verdict.by)


def show(found: list[Drawn], console: Console) -> None:
    """Print the shares, and each run that was judged wrongly."""
    failing, healthy = ([each for each in found if each.label == label] for label in ("failing", "healthy"))
    parts = failing, [each for each in failing if each.score < NOTHING], healthy
    heads = "failing stopped", f"of those below {NOTHING}", "healthy stopped"
    table = Table(*heads, title=f"{len(found)} runs drawn at random")
    shares = (Share(sum(each.stopped is not None for each in part), len(part)) for part in parts)
    table.add_row(*map(str, shares))
    console.print(table)
    for each in found:
        wrong = {"healthy": each.stopped is not None, "failing": each.stopped is None}
        if wrong.get(each.label):
            told = f"stopped by {each.by} at {each.stopped}" if each.by else "missed"
            drawn = settings(each.number) | {"activation": settings(each.number)["activation"].__name__}
            console.print(f"{each.number}: {each.score:.2f} {told}: {drawn}", soft_wrap=True, highlight=False)


def main() -> None:
    """Draw, train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the number of the first (default: 0)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write what became of each run there")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(run, range(args.first, args.first + args.runs)))
    show(found, Console(width=100))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
