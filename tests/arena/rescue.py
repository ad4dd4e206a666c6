"""How many failing runs end healthy with nobody watching: the shipped rules, and blind remedies beside them.

    python tests/arena/rescue.py [--seeds 1] [--jobs 2] [--only GLOB] [--strategies shipped ...] [--again]

Takes the scenarios that a remedy can cure and whose bare run failed (as `python tests/arena` recorded it),
and trains each under `stepguard.supervise` with the default pack, four attempts at most. Saved is what ends
at 0.8 of the way from chance to reference, within three times the budget of the bare run. All strategies are
stopped by the same rules; they differ in what the next attempt changes. What is on disk already is not run
again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from arena.catalog import KINDS, SCENARIOS, held_out, kind
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
    steps: int = 0
    """Of all attempts."""

    @property
    def saved(self) -> bool:
        """Whether it ended healthy within the budget."""
        return self.score >= HEALTHY and self.budget <= BUDGET


def _attempt(scenario: Scenario, rescue: Rescue, attempt: stepguard.Attempt) -> float:
    steps = scenario.build().steps
    torch.manual_seed(attempt.seed)

    def count(_: object) -> None:
        rescue.steps += 1
        rescue.budget = rescue.steps / steps

    change = STRATEGIES[rescue.strategy]
    try:
        score = scenario.train(attempt, total_steps=steps, subscribers=[count])
        rescue.history.append(f"{score:.2f}")
        return score
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
            lambda attempt: _attempt(scenario, found, attempt),
            attempts=ATTEMPTS,
            seed=seed,
            budget=BUDGET if strategy == "shipped" else 1.0,
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


Key = tuple[str, str, int]
LOG = FOLDER / "rescue.jsonl"


def on_disk(log: Path = LOG) -> dict[Key, Rescue]:
    """What was run so far, by strategy, scenario and seed; of several the last."""
    lines = log.read_text().splitlines() if log.exists() else []
    found = (Rescue(**json.loads(line)) for line in lines)
    return {(r.strategy, r.scenario, r.seed): r for r in found}


def rescue_all(work: Sequence[Key], jobs: int, log: Path = LOG) -> Iterator[Rescue]:
    """Train in parallel, and write down each as soon as it ends; a fault in one leaves the others alone."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, log.open("a") as out:
        futures = {pool.submit(rescue, name, seed, strategy): name for strategy, name, seed in work}
        for future in as_completed(futures):
            try:
                found = future.result()
            except Exception as fault:
                print(f"{futures[future]}: {type(fault).__name__}: {fault}", file=sys.stderr)
                continue
            out.write(json.dumps(asdict(found)) + "\n")
            out.flush()
            yield found


def line(rescue: Rescue) -> str:
    """One rescue on a line."""
    saved = "saved" if rescue.saved else "lost"
    history = "; ".join(rescue.history)
    return f"{rescue.strategy:8} {saved:5} {rescue.scenario:30} {rescue.budget:.1f} budgets: {history}"


def show(found: Sequence[Rescue], strategies: Sequence[str], console: Console) -> None:
    """Print the table, and what the shipped rules did not save."""
    columns = "strategy", "saved", "tuning families", "all others", "last two lots", "budget of the saved"
    table = Table(*columns, title="rescued runs")
    for strategy in strategies:
        mine = [r for r in found if r.strategy == strategy]
        apart = {out: [r for r in mine if held_out(SCENARIOS[r.scenario]) == out] for out in (False, True)}
        last = [r for r in mine if kind(SCENARIOS[r.scenario]) in KINDS[-2:]]
        shares = (Share(sum(r.saved for r in part), len(part)) for part in (mine, *apart.values(), last))
        used = [r.budget for r in mine if r.saved]
        table.add_row(strategy, *map(str, shares), f"{sum(used) / max(len(used), 1):.2f}")
    console.print(table)
    for lost in (r for r in found if r.strategy == "shipped" and not r.saved):
        console.print(line(lost), soft_wrap=True, highlight=False)


def main() -> None:
    """Rescue, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="*", help="scenarios whose names fit this glob")
    parser.add_argument("--half", choices=["tuning", "held-out"], help="only one half of the families")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--again", action="store_true", help="run what is on disk once more")
    args = parser.parse_args()
    runs = [
        run
        for run in curable(args.seeds, args.only)
        if args.half is None or held_out(SCENARIOS[run[0]]) == (args.half == "held-out")
    ]
    wanted: list[Key] = [(strategy, *run) for strategy in args.strategies for run in runs]
    there = {} if args.again else on_disk()
    for found in rescue_all([key for key in wanted if key not in there], args.jobs):
        print(line(found), flush=True)
    there = on_disk()
    found = [there[key] for key in wanted if key in there]
    show(found, args.strategies, Console(width=190))
    data = [asdict(r) | {"saved": r.saved} for r in found]
    (FOLDER / "rescue.json").write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
