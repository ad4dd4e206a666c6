"""What happened in a recorded run, told for whoever comes back the next morning, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stepguard.report.summary import COMPLETED, AttemptSummary
from stepguard.report.words import count, listing, number, short_deed
from stepguard.series.runfile import Event

_MOST = 8
"""Happenings of an attempt that are told; what is between them is counted."""


class Chapter(NamedTuple):
    """An attempt with all that it recorded beside its frames."""

    summary: AttemptSummary
    events: Sequence[Event]


def story(chapters: Sequence[Chapter], advice: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """One line a happening; `advice` gives the cures that a rule knows."""
    for chapter in chapters:
        summary = chapter.summary
        yield f"attempt {summary.number} began with {summary.remedy() or 'your settings'}"
        told = list(_happenings(chapter))
        shown = told if len(told) <= _MOST else [*told[: _MOST - 2], "", *told[-2:]]
        for line in shown:
            yield f"  {line}" if line else f"  ... {len(told) - _MOST} more ..."
        yield f"  {_ending(summary)}"
    if chapters:
        yield f"next: {_next(chapters, advice)}"


def _happenings(chapter: Chapter) -> Iterator[str]:
    """What happened, by step."""
    found = [
        (alert.first_step, f"{alert.rule} fired{_where(alert.layers)}") for alert in chapter.summary.alerts
    ]
    deeds: dict[str, list[int]] = {}
    for decision in chapter.summary.decisions:
        if decision.kind != "warn":
            deeds.setdefault(f"{decision.rule}: {short_deed(decision)}", []).append(decision.step)
    found += [(steps[0], deed + _often(len(steps))) for deed, steps in deeds.items()]
    found += [(event.step, _EVENTS[event.kind].format(**event.data)) for event in _tellable(chapter.events)]
    for step, line in sorted(found, key=lambda each: each[0]):
        yield f"step {step:,}: {line}"


_EVENTS = {
    "cured": "{rule} stayed clear: cured",
    "not recovered": "{rule} came back: not cured",
    "resumed": "resumed from the snapshot of step {step}, after a crash or a kill",
    "dropped": "{frames} frames were not recorded: the disk was too slow",
}
"""What is told of events that are neither alerts nor decisions."""


def _tellable(events: Sequence[Event]) -> Iterator[Event]:
    return (event for event in events if event.kind in _EVENTS)


def _where(layers: Sequence[str]) -> str:
    return f" at {listing(list(layers), 3)}" if layers else ""


def _often(times: int) -> str:
    return "" if times == 1 else f", {times:,} times"


def _ending(summary: AttemptSummary) -> str:
    loss = "" if summary.loss is None else f", loss {number(summary.loss)}"
    ended = summary.outcome or "not closed: it goes on, or was killed"
    return f"after {count(summary.steps, 'step')}{loss}: {ended}"


def _next(chapters: Sequence[Chapter], advice: Mapping[str, Sequence[str]]) -> str:
    """What a person can do about how the last attempt ended."""
    last = chapters[-1].summary
    ended, _, rule = last.outcome.partition(": ")
    if last.outcome == COMPLETED:
        changed = last.remedy()
        return f"it went well with {changed}: put that into the script" if changed else "nothing"
    if ended == "halt":
        cures = "; ".join(advice.get(rule, ())) or f"stepguard explain {rule}"
        return f"{rule} halted it: {cures}"
    if ended == "restart":
        return f"{rule} asked for another attempt and none followed: stepguard run -- CMD gives it one"
    if ended == "error":
        return "mend the error of the script, and run it again"
    return "if it no longer runs it was killed: stepguard run goes on from the newest certified snapshot"
