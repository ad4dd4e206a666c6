"""The arena: hundreds of small trainings, healthy and failing, and what the rules make of them.

    python tests/arena [--seeds 2] [--jobs 2] [--only GLOB] [--pack default] [--every 1|--no-score] [--again]

Records what is not recorded yet (each bare run once, all signals), replays every recording under the pack
and under the baselines, prints the tables, and writes them to runs/arena/figures.json and, for the default
pack, to rules/measured.json. It may be stopped at any moment and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from arena import baselines, catalog, figures
from arena.judge import Verdict, judge_all, thinned, unscored
from arena.record import FOLDER, outcomes, record_all
from stepguard.rules.packs import load_rules
from stepguard.rules.rule import Ruleset

MEASURED = Path(__file__).parents[2] / "rules" / "measured.json"


def measured(verdicts: list[Verdict], rules: Ruleset) -> dict[str, Any]:
    """What `stepguard explain` quotes: each rule's figures over all families."""
    bad, good = list(filter(figures.failing, verdicts)), list(filter(figures.healthy, verdicts))
    found: dict[str, Any] = {}
    for rule in rules.rules:
        alone = figures.rule_figures(verdicts, rule.name)
        found[rule.name] = {
            "condition": " ".join(rule.condition.text.split()),
            "failing_runs": len(bad),
            "failing_fired": sum(rule.name in v.fired for v in bad),
            "failing_stopped": alone.hits.hits,
            "healthy_runs": len(good),
            "healthy_fired": sum(rule.name in v.fired for v in good),
            "healthy_stopped": alone.false_stops.hits,
            "alerts_per_1000_healthy_steps": round(alone.false_warnings, 3),
            "lead": alone.lead,
            "stopped_by_no_other": alone.only,
        }
    return found


def as_data(verdicts: list[Verdict]) -> dict[str, Any]:
    """The pack's figures, tuned on and held out apart, with their intervals."""
    found: dict[str, Any] = {}
    for kind, part in figures.parts(verdicts).items():
        whole = figures.figures(part)
        found[kind] = asdict(whole)
        for name in ("stopped", "false_stops", "crashes"):
            found[kind][name]["interval"] = getattr(whole, name).interval()
    return found


def show_baselines(verdicts: list[Verdict], under: list[Verdict], console: Console) -> dict[str, Any]:
    """Print the baselines beside the pack."""
    table = Table(
        "baseline",
        "failing stopped",
        "healthy stopped",
        "crashes stopped",
        "budget used",
        title="baselines, all families",
    )
    found: dict[str, Any] = {}
    for name, members in baselines.names().items():
        f = figures.figures(baselines.as_pack(under, members))
        found[name] = {"failing": asdict(f.stopped), "healthy": asdict(f.false_stops), "budget": f.budget}
        table.add_row(name, str(f.stopped), str(f.false_stops), str(f.crashes), f"{f.budget:.1%}")
    hit, harmed = baselines.lots(verdicts)
    found["as many at random"] = {"failing": asdict(hit), "healthy": asdict(harmed)}
    table.add_row("as many at random", str(hit), str(harmed), "", "")
    console.print(table)
    return found


def show_wrong(verdicts: list[Verdict], console: Console) -> None:
    """Name the runs that the pack misses or stops wrongly."""
    for v in verdicts:
        o = v.outcome
        if figures.failing(v) and v.stopped is None:
            console.print(
                f"missed: {o.scenario} seed {o.seed}, score {o.score:.2f}, warned of {sorted(v.warnings)}"
            )
        elif figures.healthy(v) and v.stopped is not None:
            console.print(
                f"stopped, though healthy: {o.scenario} seed {o.seed}, {o.score:.2f}, {v.stopped}, {v.by}"
            )
        elif figures.healthy(v) and v.acted is not None:
            console.print(
                f"touched, though healthy: {o.scenario} seed {o.seed}, step {v.acted}, {list(v.warnings)}"
            )


def main() -> None:
    """Record, replay, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each scenario (default: 2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", default="*", help="scenarios whose names fit this glob")
    parser.add_argument("--pack", default="default", help="pack or rule file to try (default: default)")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument(
        "--every", type=int, default=1, help="replay as if measured each so many steps (default: 1)"
    )
    seen.add_argument("--no-score", action="store_true", help="replay as if no score had been logged")
    parser.add_argument(
        "--no-total", action="store_true", help="replay as if the length of the runs were not known"
    )
    parser.add_argument("--again", action="store_true", help="record anew what is recorded")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=170)
    names = [name for name in catalog.SCENARIOS if fnmatchcase(name, args.only)]
    record_all(names, range(args.seeds), args.folder, args.jobs, args.again)
    runs = [o for o in outcomes(args.folder).values() if o.scenario in names and o.seed < args.seeds]
    view = unscored if args.no_score else None if args.every == 1 else partial(thinned, every=args.every)
    rules = load_rules(args.pack)
    verdicts, under = judge_all(
        [rules, baselines.rules()], runs, args.folder, jobs=args.jobs, total=not args.no_total, view=view
    )
    title = f"{args.pack}: {len(names)} scenarios, {args.seeds} seeds, {sum(o.steps for o in runs):,} steps"
    figures.show(verdicts, [rule.name for rule in rules.rules], title, console)
    others = show_baselines(verdicts, under, console)
    show_wrong(verdicts, console)
    data = {"pack": as_data(verdicts), "rules": measured(verdicts, rules), "baselines": others}
    (args.folder / "figures.json").write_text(json.dumps(data, indent=1))
    if args.pack == "default" and args.only == "*" and view is None and not args.no_total:
        MEASURED.write_text(json.dumps(data["rules"], indent=1) + "\n")


if __name__ == "__main__":
    main()
