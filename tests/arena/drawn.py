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
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from arena.crashes import crashes
from arena.draws import scenario, settings
from arena.figures import Share
from arena.judge import judge
from arena.record import Outcome, run_bare
from stepguard.rules.packs import load_rules

NOTHING = 0.2
"""The normalised score below which next to nothing was learned."""


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
    drawn, own = settings(number), scenario(number)
    recording, score = run_bare(own, number)
    crash = crashes(recording)
    outcome = Outcome(own.name, "drawn", "drawn", number, drawn["steps"], score, crash, 0.0)
    verdict = judge(load_rules("default"), outcome, recording, total=drawn["length known"], alone=False)
    normal = own.normalised(score)
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
