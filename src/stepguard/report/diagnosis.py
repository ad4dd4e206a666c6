"""An alert as a good compiler prints an error: what, where, measured how, why, what helps, what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from stepguard.errors import Place
from stepguard.report.causes import likely_causes
from stepguard.report.findings import Findings, Past, Site
from stepguard.report.palette import FIRST, QUIET, SEVERITY
from stepguard.report.sparkline import Sparkline
from stepguard.report.words import deed, listing, number, short_deed, where
from stepguard.rules.alert import Change, Evidence
from stepguard.rules.rule import Rule, Severity
from stepguard.signals import Layer

if TYPE_CHECKING:
    from stepguard.recover.decision import Decision

_AT_MOST_NAMED = 6
_BESIDE = 40
"""Characters beside a sparkline: bar, name of the signal, first and last reading."""


@dataclass(frozen=True)
class Diagnosis:
    """One rule that fired at one step, at one layer, at many or on the whole run.

    Printed by rich it is the full text; `str()` is one line for a log, with the likeliest cause and the
    first cure.
    """

    rule: str
    severity: Severity
    place: Place
    """Where the rule stands."""
    step: int
    message: str
    layers: tuple[Layer, ...]
    """The layers at which it fired, in depth order; empty for a rule on the whole run."""
    total: int
    """How many layers the rule could see."""
    evidence: Evidence | None
    """What was measured at the first of the layers."""
    causes: tuple[str, ...]
    """What the evidence says about the cause."""
    advice: tuple[str, ...]
    """The rule's cures, in its order."""
    decision: Decision | None
    """What the guard does now; None where it does nothing."""

    def __str__(self) -> str:
        return self.line(self.why)

    @property
    def why(self) -> str:
        """The likeliest cause and the first cure, in a few words; empty where neither is known."""
        found = (("likely", self.causes), ("try", self.advice))
        return "; ".join(f"{label}: {told[0]}" for label, told in found if told)

    def line(self, why: str = "") -> str:
        """What happened, at which step and where; `why`, if given; and what is done."""
        told = (self.severity, self.rule, where(self.layers, self.total), self.message)
        line = ": ".join((f"stepguard: step {self.step}", *filter(None, told)))
        line = f"{line} ({why})" if why else line
        return line if self.decision is None else f"{line} -> {short_deed(self.decision)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        style = SEVERITY[self.severity]
        title = Text.assemble((f"{self.severity}[{self.rule}]", f"bold {style}"))
        yield title.append(f": {self.message}" if self.message else "", style="bold")
        place = f" {where(self.layers, self.total)}" if self.layers else ""
        yield Text.assemble(("  --> ", FIRST), f"step {self.step}{',' if place else ''}{place}")
        grid = _grid()
        self._add_measured(grid, style, options.max_width - _BESIDE)
        self._add_notes(grid)
        yield grid

    def _add_measured(self, grid: Table, style: str, room: int) -> None:
        if self.evidence is None or not self.evidence.values:
            return
        line = Sparkline(self.evidence.values, style, max(room, 10))
        grid.add_row("|", "", "")
        grid.add_row("|", Text(self.evidence.signal), line.text())
        for told in filter(None, (_readings(self.evidence, line), _measures(self.evidence))):
            grid.add_row("|", "", Text(told, style=QUIET))
        grid.add_row("|", "", "")

    def _add_notes(self, grid: Table) -> None:
        others = [layer.name for layer in self.layers[1:]]
        for label, note in (
            ("also at", Text(listing(others, _AT_MOST_NAMED))),
            ("likely", Group(*map(Text, self.causes)) if self.causes else None),
            ("cures", _numbered(self.advice) if self.advice else None),
            ("now", Text(self._now())),
            ("rule", Text(f"{self.place.file}:{self.place.line}")),
        ):
            if note:
                grid.add_row("=", f"{label}:", note)

    def _now(self) -> str:
        decision = self.decision
        if decision is None:
            return "the training goes on"
        details: list[str] = []
        if decision.rungs > 1:
            details.append(f"rung {decision.rung + 1} of {decision.rungs}")
        if decision.use > 1:
            details.append(f"use {decision.use}")
        if decision.rule != self.rule:
            details.append(f"as {decision.rule} asks")
        if decision.dry_run:
            details.append("dry run: nothing is done")
        return deed(decision) + (f" ({', '.join(details)})" if details else "")


def diagnose(
    rule: Rule,
    changes: Sequence[Change],
    layers: Sequence[Layer],
    decision: Decision | None,
    past: Past | None = None,
) -> Diagnosis:
    """Make one diagnosis of a rule's alerts that began to fire at one step.

    `changes` are that rule's firing changes, at least one; `layers` are all watched layers in depth
    order; `decision` is what the guard does at that step, None for nothing; `past` are the frames up to now.
    """
    sites, first = _sites(changes, layers)
    evidence = first.evidence
    known = Findings(evidence, sites, layers, past or Past.none()) if evidence else None
    return Diagnosis(
        rule=rule.name,
        severity=first.severity,
        place=rule.place,
        step=first.step,
        message=first.message or rule.condition.text,
        layers=tuple(site.layer for site in sites),
        total=evidence.total if evidence else 0,
        evidence=evidence,
        causes=() if known is None else likely_causes(known),
        advice=rule.advice,
        decision=decision,
    )


def _sites(changes: Sequence[Change], layers: Sequence[Layer]) -> tuple[list[Site], Change]:
    """The layers concerned in depth order, and the change at the first of them."""
    depth = {layer.name: i for i, layer in enumerate(layers)}
    here = sorted((c for c in changes if c.layer in depth), key=lambda change: depth[change.layer or ""])
    if here:
        values = [(c.layer or "", c.evidence.value if c.evidence else None) for c in here]
        return [Site(depth[name], layers[depth[name]], value) for name, value in values], here[0]
    evidence = changes[0].evidence
    named = [name for name in evidence.layers if name in depth] if evidence else []
    return [Site(depth[name], layers[depth[name]], None) for name in named], changes[0]


def _readings(evidence: Evidence, line: Sparkline) -> str:
    steps = f"steps {evidence.steps[0]}..{evidence.steps[-1]}" if evidence.steps else ""
    return ", ".join(filter(None, (steps, line.range())))


def _measures(evidence: Evidence) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in evidence.measures.items())


def _grid() -> Table:
    """Rows under the heading: a bar or an equals sign, a label, and text that wraps within its column."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style=FIRST, width=4, justify="right")
    grid.add_column(style="bold", min_width=8, no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _numbered(advice: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for place, cure in enumerate(advice, 1):
        grid.add_row(f"{place}.", Text(cure))
    return grid
