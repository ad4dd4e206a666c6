"""How many failing runs end healthy with nobody watching: the shipped rules, and blind remedies beside them.

    python tests/arena/rescue.py [--seeds 1] [--jobs 2] [--only GLOB] [--strategies shipped same ...]

Takes the scenarios that a remedy can cure and whose bare run failed (as `python tests/arena` recorded it),
and trains each under `stepguard.supervise` with the default pack, four attempts at most. Saved is what ends
at 0.8 of the way from chance to reference, within three times the budget of the bare run. All strategies are
stopped by the same rules; they differ in what the next attempt changes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table

import stepguard
from arena.catalog import SCENARIOS, held_out
from arena.figures import Share
from arena.record import FOLDER, outcomes
from arena.training import Scenario

Remedy = Mapping[str, float | str]
ATTEMPTS, BUDGET, HEALTHY, FAILING = 4, 3.0, 0.8, 0.5


def _blind(_: Remedy) -> Remedy:
    """Any learning rate over six decades, any initialisation, clipping or not."""
    remedy: dict[str, float | str] = {"lr": 10 ** random.uniform(-4, 2), "seed": 1}
    init = random.choice([None, "kaiming", "lsuv"])
    return remedy | ({"init": init} if init else {}) | ({"clip": 1.0} if random.random() < 0.5 else {})


STRATEGIES: Mapping[str, Callable[[Remedy], Remedy]] = {
    "shipped": lambda remedy: remedy,
    "same": lambda _: {"seed": 1},
    "random": _blind,
    "halving": lambda _: {"lr": 0.5},
}
"""What the next attempt changes, given what the rules ask for."""


@dataclass
class Rescue:
    """What became of one failing scenario."""

    scenario: str
    seed: int
    strategy: str
    score: float = -1.0
    """Normalised, of the attempt that ended; -1 where none did."""
    budget: float = 0.0
    """Steps of all attempts over those of the bare run."""
    history: list[str] = field(default_factory=list[str])

    @property
    def saved(self) -> bool:
        """Whether it ended healthy within the budget."""
        return self.score >= HEALTHY and self.budget <= BUDGET


def _attempt(scenario: Scenario, rescue: Rescue, attempt: stepguard.Attempt) -> float:
    steps = scenario.build().steps
    torch.manual_seed(attempt.seed)

    def count(_: object) -> None:
        rescue.budget += 1 / steps

    change = STRATEGIES[rescue.strategy]
    try:
        return scenario.train(attempt, total_steps=steps, subscribers=[count])
    except stepguard.RestartRequested as request:
        remedy = change(request.remedy)
        rescue.history.append(f"{request.rule} at {request.step}: {dict(remedy)}")
        raise stepguard.RestartRequested(
            str(request), step=request.step, rule=request.rule, remedy=remedy
        ) from request


def rescue(name: str, seed: int, strategy: str) -> Rescue:
    """Train a scenario until an attempt ends, with nobody watching."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    random.seed(f"{name} {seed}")
    scenario, found = SCENARIOS[name], Rescue(name, seed, strategy)
    try:
        found.score = stepguard.supervise(
            lambda attempt: _attempt(scenario, found, attempt), attempts=ATTEMPTS, seed=seed
        )
        found.history.append(f"ended at {found.score:.2f}")
    except stepguard.TrainingStopped as stopped:
        found.history.append(f"{type(stopped).__name__} by {stopped.rule} at {stopped.step}")
    return found


def curable(seeds: int, pattern: str, folder: Path = FOLDER) -> list[tuple[str, int]]:
    """The runs that failed bare though a remedy can cure them."""
    return [
        (o.scenario, o.seed)
        for o in outcomes(folder).values()
        if o.seed < seeds
        and o.score < FAILING
        and SCENARIOS[o.scenario].curable
        and SCENARIOS[o.scenario].intent == "failing"
        and fnmatchcase(o.scenario, pattern)
    ]


def show(found: list[Rescue], strategies: list[str], console: Console) -> None:
    """Print the table, and what the shipped rules did not save."""
    table = Table("strategy", "saved", "held-out families", "budget of the saved", title="rescued runs")
    for strategy in strategies:
        mine = [r for r in found if r.strategy == strategy]
        unseen = [r for r in mine if held_out(SCENARIOS[r.scenario])]
        saved = [r for r in mine if r.saved]
        used = sum(r.budget for r in saved) / max(len(saved), 1)
        shares = (Share(sum(r.saved for r in part), len(part)) for part in (mine, unseen))
        table.add_row(strategy, *map(str, shares), f"{used:.2f}")
    console.print(table)
    for lost in (r for r in found if r.strategy == "shipped" and not r.saved):
        console.print(
            f"not saved: {lost.scenario} seed {lost.seed}, {lost.score:.2f}, {lost.budget:.1f} budgets"
        )
        for line in lost.history:
            console.print("   ", line)


def main() -> None:
    """Rescue, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="*", help="scenarios whose names fit this glob")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    args = parser.parse_args()
    work = [(*run, strategy) for strategy in args.strategies for run in curable(args.seeds, args.only)]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(rescue, *zip(*work, strict=True)))
    show(found, args.strategies, Console(width=170))
    data = [asdict(r) | {"saved": r.saved} for r in found]
    (FOLDER / "rescue.json").write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
