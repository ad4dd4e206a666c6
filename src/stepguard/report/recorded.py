"""What a run file holds of an attempt, back in the types that the reports are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepguard.errors import RunFileError
from stepguard.recover.decision import Decision
from stepguard.report.summary import AttemptSummary, count_alerts
from stepguard.rules.alert import Change, Evidence
from stepguard.series.blocks import Block
from stepguard.signals import METRIC


@dataclass(frozen=True)
class Happenings:
    """The changes of alerts and the decisions of an attempt, in order."""

    changes: tuple[Change, ...]
    decisions: tuple[Decision, ...]
    metrics: Mapping[str, float]
    """What was logged after the last step, by its signal's name."""


def happenings(events: Iterable[tuple[str, Mapping[str, Any]]]) -> Happenings:
    """Read events, each a kind and its JSON object; kinds that are not in Happenings are left out.

    Raises:
        RunFileError: an event lacks a field.
    """
    changes: list[Change] = []
    decisions: list[Decision] = []
    metrics: dict[str, float] = {}
    for kind, data in events:
        try:
            if kind == "change":
                changes.append(_change(data))
            elif kind == "decision":
                decisions.append(_decision(data))
            elif kind == "metrics":
                metrics |= data
        except (KeyError, TypeError) as error:
            raise RunFileError(f"a recorded {kind} cannot be read: {error!r} in {dict(data)}") from error
    return Happenings(tuple(changes), tuple(decisions), metrics)


def _change(data: Mapping[str, Any]) -> Change:
    evidence = data["evidence"]
    return replace(Change(**data), evidence=None if evidence is None else _evidence(evidence))


def _evidence(data: Mapping[str, Any]) -> Evidence:
    steps, values, layers = (tuple(data[name]) for name in ("steps", "values", "layers"))
    return replace(Evidence(**data), steps=steps, values=values, layers=layers)


def _decision(data: Mapping[str, Any]) -> Decision:
    return replace(Decision(**data), also=tuple(data["also"]))


def told_of(signals: Iterable[str]) -> set[str]:
    """The signals whose last values a summary tells."""
    return {name for name in signals if name == "loss" or name.startswith(METRIC)}


def attempt_summary(
    number: int,
    info: Mapping[str, Any],
    outcome: str,
    blocks: Iterable[Block],
    happened: Happenings,
) -> AttemptSummary:
    """What became of a recorded attempt; of its blocks only `told_of` is read."""
    steps = 0
    last: dict[str, float] = {}
    for block in blocks:
        steps += len(block)
        for name, column in block.scalars.items():
            if column.present.any():
                last[name] = float(column.values[column.present][-1])
    last |= happened.metrics
    return AttemptSummary(
        number=number,
        steps=steps,
        outcome=outcome,
        info=info,
        loss=last.get("loss"),
        metrics={name.removeprefix(METRIC): value for name, value in last.items() if name.startswith(METRIC)},
        alerts=count_alerts(happened.changes),
        decisions=happened.decisions,
    )
