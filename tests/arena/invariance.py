"""Whether a verdict depends on what should not matter: the scale of the loss, how often is measured.

    python tests/arena/invariance.py [--jobs 2]

Replays every recorded run of the arena under the default pack as if its loss, gradients and learning rate had
been scaled, which leaves the training the same, and as a guard that measures each second or tenth step only
would have seen it. Prints how many runs get the same verdict: left alone, or ended.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from arena import catalog
from arena.figures import Share, figures
from arena.judge import View, judge_all, scaled, thinned
from arena.record import FOLDER, outcomes
from stepguard.rules.packs import load_rules

VIEWS: dict[str, View] = {
    "loss x 1e-4": partial(scaled, by=1e-4),
    "loss x 1e4": partial(scaled, by=1e4),
    "every 2": partial(thinned, every=2),
    "every 10": partial(thinned, every=10),
}


def main() -> None:
    """Replay, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    runs = [o for o in outcomes(args.folder).values() if o.scenario in catalog.SCENARIOS]
    packs = [load_rules("default")]
    (plain,) = judge_all(packs, runs, args.folder, jobs=args.jobs, alone=False)
    table = Table("seen as", "same verdict", "failing stopped", "healthy stopped", "other verdict")
    for name, view in VIEWS.items():
        (found,) = judge_all(packs, runs, args.folder, jobs=args.jobs, view=view, alone=False)
        pairs = list(zip(plain, found, strict=True))
        other = [b.outcome for a, b in pairs if (a.stopped is None) != (b.stopped is None)]
        whole = figures(found)
        table.add_row(
            name,
            str(Share(len(pairs) - len(other), len(pairs))),
            str(whole.stopped),
            str(whole.false_stops),
            ", ".join(f"{o.scenario}:{o.seed}" for o in other),
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
