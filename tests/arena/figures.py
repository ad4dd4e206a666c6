"""Figures of a pack over many runs, with exact intervals, for families tuned on and for those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from arena import catalog
from arena.judge import Verdict


@dataclass(frozen=True)
class Share:
    """So many of so many, and between which shares the truth lies at 95 % (Clopper and Pearson 1934)."""

    hits: int
    of: int

    def interval(self) -> tuple[float, float]:
        """The exact interval; everything where there is nothing to go by."""
        if not self.of:
            return 0.0, 1.0
        found = binomtest(self.hits, self.of).proportion_ci(method="exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        if not self.of:
            return "none"
        low, high = self.interval()
        return f"{self.hits}/{self.of} = {self.hits / self.of:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Figures:
    """What a pack did, over some runs."""

    stopped: Share
    """Failing runs that were stopped."""
    false_stops: Share
    """Healthy runs, without crash, that were stopped."""
    crashes: Share
    """Runs with the lecture's crash that were stopped."""
    budget: float
    """Mean share of the budget that a failing run had used when it was stopped; 1 where it never was."""
    false_warnings: float
    """Alerts per 1,000 steps of healthy runs, of all severities."""


def failing(verdict: Verdict) -> bool:
    """By outcome."""
    return verdict.outcome.label == "failing"


def healthy(verdict: Verdict) -> bool:
    """By outcome; a run that crashed in its youth and came back is neither."""
    return verdict.outcome.label == "healthy" and verdict.outcome.crash is None


def figures(verdicts: Sequence[Verdict]) -> Figures:
    """Sum up the pack as a whole."""
    bad, good = [v for v in verdicts if failing(v)], [v for v in verdicts if healthy(v)]
    crashed = [v for v in verdicts if v.outcome.crash is not None]
    used = [1.0 if v.stopped is None else v.stopped / v.outcome.steps for v in bad]
    steps = sum(v.outcome.steps for v in good)
    alerts = sum(sum(v.warnings.values()) for v in good)
    return Figures(
        Share(sum(v.stopped is not None for v in bad), len(bad)),
        Share(sum(v.stopped is not None for v in good), len(good)),
        Share(sum(v.stopped is not None for v in crashed), len(crashed)),
        fmean(used) if used else 0.0,
        1000 * alerts / steps if steps else 0.0,
    )


@dataclass(frozen=True)
class RuleFigures:
    """What one rule did alone."""

    hits: Share
    false_stops: Share
    false_warnings: float
    lead: float | None
    """Median steps from its stop to the first loss that is not finite or twice its first, where one is."""
    only: int
    """Failing runs that no other rule stops."""


def rule_figures(verdicts: Sequence[Verdict], rule: str) -> RuleFigures:
    """Sum up one rule."""
    bad, good = [v for v in verdicts if failing(v)], [v for v in verdicts if healthy(v)]
    hit = [v for v in bad if rule in v.stops]
    leads = [v.broken - v.stops[rule] for v in hit if v.broken is not None]
    steps = sum(v.outcome.steps for v in good)
    alerts = sum(v.warnings.get(rule, 0) for v in good)
    return RuleFigures(
        Share(len(hit), len(bad)),
        Share(sum(rule in v.stops for v in good), len(good)),
        1000 * alerts / steps if steps else 0.0,
        median(leads) if leads else None,
        sum(len(v.stops) == 1 for v in hit),
    )


def parts(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Tuning families, families held out, those written after the rules were, all."""
    kinds = [catalog.kind(catalog.SCENARIOS[v.outcome.scenario]) for v in verdicts]
    found = {
        name: [v for v, kind in zip(verdicts, kinds, strict=True) if kind == name] for name in catalog.KINDS
    }
    return found | {"all": list(verdicts)}


def show(verdicts: Sequence[Verdict], rules: Sequence[str], title: str, console: Console) -> None:
    """Print the pack's figures, and those of each rule."""
    whole = Table(
        "families",
        "failing stopped",
        "healthy stopped",
        "crashes stopped",
        "budget used",
        "false alerts/1,000",
        title=title,
    )
    for name, part in parts(verdicts).items():
        f = figures(part)
        whole.add_row(
            name,
            str(f.stopped),
            str(f.false_stops),
            str(f.crashes),
            f"{f.budget:.1%}",
            f"{f.false_warnings:.2f}",
        )
    console.print(whole)
    console.print(_by_rule(verdicts, rules))


def _by_rule(verdicts: Sequence[Verdict], rules: Sequence[str]) -> Table:
    """Each rule for itself: on the families whose thresholds it was tuned on, and on all others."""
    apart = parts(verdicts)
    tuned, others = apart["tuning"], [v for kind in catalog.KINDS[1:] for v in apart[kind]]
    table = Table("rule", "hits tuning", "hits others", "false tuning", "false others")
    for heading in ("false alerts/1,000", "lead", "only it"):
        table.add_column(heading, justify="right")
    for rule in rules:
        each = [rule_figures(part, rule) for part in (tuned, others)]
        of_all = rule_figures(verdicts, rule)
        table.add_row(
            rule,
            *(f"{f.hits.hits}/{f.hits.of}" for f in each),
            *(f"{f.false_stops.hits}/{f.false_stops.of}" for f in each),
            f"{of_all.false_warnings:.2f}",
            "" if of_all.lead is None else f"{of_all.lead:.0f}",
            str(of_all.only),
        )
    return table
