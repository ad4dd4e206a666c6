"""What happened in a recorded run, told for whoever comes back the next morning, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stepguard.recover.supervisor_ending import HUNG, OUT_OF_MEMORY
from stepguard.report.summary import COMPLETED, KEPT, AlertCount, AttemptSummary
from stepguard.report.words import count, listing, number, short_deed
from stepguard.series.runfile import Event

_ENDED_BY = ("killed", "out of memory: killed")
_MOST = 8
"""Happenings of an attempt that are told; what is between them is counted."""


class Chapter(NamedTuple):
    """An attempt with all that it recorded beside its frames."""

    summary: AttemptSummary
    events: Sequence[Event]


class Left(NamedTuple):
    """What a run has left beside its file."""

    path: str = "RUN"
    kept: int | None = None
    """The step of the newest snapshot that the last attempt can go on from."""
    runs: bool | None = None
    """Whether a process still writes the run; None if that cannot be known."""


UNKNOWN = Left()


def story(
    chapters: Sequence[Chapter], advice: Mapping[str, Sequence[str]], left: Left = UNKNOWN
) -> Iterator[str]:
    """One line a happening; `advice` gives the cures that a rule knows."""
    for chapter in chapters:
        summary = chapter.summary
        yield f"attempt {summary.number} began with {summary.remedy() or 'your settings'}"
        told = list(_happenings(chapter))
        shown = told if len(told) <= _MOST else [*told[: _MOST - 2], "", *told[-2:]]
        for line in shown:
            yield f"  {line}" if line else f"  ... {len(told) - _MOST} more ..."
        yield f"  {_ending(summary, left if chapter is chapters[-1] else None)}"
    if chapters:
        yield f"next: {_next(_deciding(chapters), advice, left)}"


def _happenings(chapter: Chapter) -> Iterator[str]:
    """What happened, by step."""
    found = [
        (alert.first_step, f"{alert.rule} fired{_where(alert.layers)}{_why(alert, chapter.events)}")
        for alert in chapter.summary.alerts
    ]
    deeds: dict[str, list[int]] = {}
    for decision in chapter.summary.decisions:
        if decision.kind != "warn":
            deeds.setdefault(f"{decision.rule}: {short_deed(decision)}", []).append(decision.step)
    found += [(steps[0], deed + _often(len(steps))) for deed, steps in deeds.items()]
    found += [(event.step, told) for event in chapter.events if (told := _event(event)) is not None]
    for step, line in sorted(found, key=lambda each: each[0]):
        yield f"step {step:,}: {line}"


_EVENTS = {
    "cured": "{rule} stayed clear: cured",
    "not recovered": "{rule} came back: not cured",
    "dropped": "{frames} frames were not recorded: the disk was too slow",
}
"""What is told of events that are neither alerts nor decisions."""


def _event(event: Event) -> str | None:
    if event.kind == "resumed":
        return _resumed(event)
    form = _EVENTS.get(event.kind)
    return None if form is None else form.format(**event.data)


def _resumed(event: Event) -> str:
    """Where the attempt went on, and what had ended it."""
    ended, reached = event.data.get("ended"), event.data.get("reached")
    why = ending(str(ended)) if ended else "killed"
    at = "" if reached is None else f", at step {reached:,} or soon after"
    return f"went on from the snapshot of step {event.data['step']:,}; before{at}: {why}"


def _where(layers: Sequence[str]) -> str:
    return f" at {listing(list(layers), 3)}" if layers else ""


def _why(alert: AlertCount, events: Sequence[Event]) -> str:
    """What the rule said as it began to fire, and the likeliest cause."""
    begun = alert.first_step, alert.rule
    said = [event for event in events if (event.step, event.data.get("rule")) == begun]
    fired = (each.data["message"] for each in said if each.data.get("state") == "firing")
    causes = (each.data["causes"][0] for each in said if each.kind == "causes")
    message, cause = next(fired, ""), next(causes, "")
    return (f": {message}" if message else "") + (f"; likely: {cause}" if cause else "")


def _often(times: int) -> str:
    return "" if times == 1 else f", {times:,} times"


def ending(outcome: str, at_most: int = 200) -> str:
    """How an attempt ended, in words that need no legend; the first line of an error."""
    kind, _, rest = outcome.partition(": ")
    rest = rest.strip().split("\n", 1)[0]
    rest = rest if len(rest) <= at_most else f"{rest[:at_most]}..."
    if kind == "error":
        return rest if rest == HUNG or rest.startswith(_ENDED_BY) else f"crashed: {rest}"
    return {
        "halt": f"halted by rule {rest}",
        "restart": f"rule {rest} asked for a restart",
        "stopped": f"ended by {rest}",
        KEPT: f"{rest}: the best attempt before it is kept",
    }.get(kind, outcome)


def _ending(summary: AttemptSummary, left: Left | None) -> str:
    loss = "" if summary.loss is None else f", loss {number(summary.loss)}"
    return f"after {count(summary.steps, 'step')}{loss}: {ending(summary.outcome) or _open(left)}"


def _open(left: Left | None) -> str:
    """An attempt that nobody has closed."""
    if left is None or left.runs is None:
        return "not closed: it goes on, or was killed"
    return "it goes on" if left.runs else "killed, or the machine went down"


def _deciding(chapters: Sequence[Chapter]) -> AttemptSummary:
    """The attempt that says what to do next: the last one, or the best where the last was to do better."""
    last = chapters[-1].summary
    if not last.outcome.startswith(KEPT):
        return last
    ended = (chapter.summary for chapter in reversed(chapters) if chapter.summary.outcome == COMPLETED)
    return next(ended, last)


def _next(last: AttemptSummary, advice: Mapping[str, Sequence[str]], left: Left) -> str:
    """What a person can do about how the last attempt ended."""
    kind, _, rest = last.outcome.partition(": ")
    if last.outcome == COMPLETED:
        changed = last.remedy()
        return f"it went well with {changed}: put that into the script" if changed else "nothing"
    if kind == "halt":
        cures = "; ".join(advice.get(rest, ())) or f"stepguard explain {rest}"
        return f"{rest} halted it: {cures}"
    if kind == "restart":
        first = "".join(f"{cure}; or " for cure in advice.get(rest, ())[:1])
        return f"{rest} asked for another attempt and none followed: {first}stepguard run -- CMD gives it one"
    if not last.outcome and left.runs:
        return "wait, or look again"
    first = "" if kind == "stopped" else f"{_cause(rest if kind == 'error' else '', left)}; then "
    if left.kept is None:
        return f"{first}run it again, from the beginning: no snapshot was certified"
    return f"{first}go on from the snapshot of step {left.kept:,}: stepguard run --resume {left.path} -- CMD"


def _cause(error: str, left: Left) -> str:
    """What to do about an end that nobody asked for."""
    if OUT_OF_MEMORY.search(error):
        return "give it more memory, or make batch or model smaller"
    if error == HUNG:
        return "find where it hung: its stacks are in what stepguard run printed"
    if not error and left.runs is None:
        return "if it no longer runs, find what killed it"
    if not error or error.startswith("killed"):
        return "find what killed it: a person, a scheduler's limit, or too little memory (dmesg tells)"
    return "mend the error"
