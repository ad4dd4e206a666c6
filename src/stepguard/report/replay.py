"""A recorded attempt once more, through the engine that ran live: under its own rules, or under others.

Flow: in come a run file and rules; out come the changes of alerts and the decisions that they give on its
frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stepguard.engine import Engine
from stepguard.errors import RunFileError
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Decision, Standing
from stepguard.recover.recovery import Recovery
from stepguard.report.stretches import happenings, stretches
from stepguard.rules.alert import Change
from stepguard.rules.packs import read_text_rules
from stepguard.rules.rule import Ruleset
from stepguard.series.runfile import AttemptRecord, RunFile


@dataclass(frozen=True)
class Replay:
    """What rules made of a recorded attempt."""

    attempt: int
    steps: int
    changes: tuple[Change, ...]
    decisions: tuple[Decision, ...]

    @property
    def fired(self) -> tuple[Change, ...]:
        """The alerts that began to fire."""
        return tuple(change for change in self.changes if change.state == "firing")


def replay(recording: RunFile, record: AttemptRecord, rules: Ruleset | None = None) -> Replay:
    """Run the frames of an attempt through the engine, under the recorded rules where none are given.

    Frames behind a step at which these rules would have stopped the attempt are looked at all the same.

    Raises:
        RunFileError: the recording lacks what a replay needs.
    """
    info = record.info
    try:
        chosen = rules or recorded_rules(recording, record)
        engine = Engine(chosen, record.layers, info["total_steps"])
        recovery = Recovery(
            engine,
            _attempt(record.number, info),
            dry_run=bool(info["dry_run"]),
            back=_snapshots(recording, record.number),
        )
    except KeyError as error:
        raise RunFileError(f"{recording.path}: attempt {record.number} does not say {error}") from error
    steps, changes, decisions = 0, list[Change](), list[Decision]()
    for block in stretches(recording.blocks(record.number, recovery.signals)):
        steps += len(block)
        for observation in happenings(block, recovery.pass_over, recovery.happened):
            changes += observation.changes
            if observation.decision is not None:
                decisions.append(observation.decision)
    return Replay(record.number, steps, tuple(changes), tuple(decisions))


def _snapshots(recording: RunFile, attempt: int) -> Callable[[int], int | None]:
    """Which snapshot there was to go back to at a step: the newest certified by then, and not lost."""
    certified = [(event.step, int(event.data["step"])) for event in recording.events(attempt, "certified")]
    lost = [(event.step, int(event.data["step"])) for event in recording.events(attempt, "lost")]

    def newest(step: int) -> int | None:
        gone = {snapshot for at, snapshot in lost if at <= step}
        return max((found for at, found in certified if at <= step and found not in gone), default=None)

    return newest


def recorded_rules(recording: RunFile, record: AttemptRecord) -> Ruleset:
    """The rules under which the attempt ran; RunFileError if the recording does not say."""
    if "rules" not in record.info:
        raise RunFileError(f"{recording.path}: attempt {record.number} does not say 'rules'")
    return read_text_rules(record.info["rules"], recording.path.name)


def _attempt(number: int, info: Mapping[str, Any]) -> Attempt:
    """The attempt as it began."""
    standings = {name: Standing(restarts=tuple(spent)) for name, spent in info["restarts"].items()}
    return Attempt(
        number=number,
        seed=info["seed"],
        lr_scale=info["lr_scale"],
        init=info["init"],
        clip=info["clip"],
        pace=info.get("pace"),
        standings=standings,
    )
