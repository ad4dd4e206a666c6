"""Attempts at a training: what each begins with, and what the next one makes of a remedy. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from stepguard.recover.curve import Curve
from stepguard.recover.decision import Standing
from stepguard.recover.link import Link


class _Closable(Protocol):
    def close(self, outcome: str = ...) -> None: ...


@dataclass
class Attempt:
    """One try at the training. `watch` reads it inside `supervise` and applies it by itself."""

    number: int = 1
    last: bool = True
    """Whether no attempt follows if a rule asks for one."""
    seed: int = 0
    lr_scale: float = 1.0
    """Factor on every learning rate."""
    init: str | None = None
    """How the model is initialised anew: `kaiming`, `lsuv`, `standardise`, or None for as it comes."""
    clip: float | None = None
    """Largest Euclidean norm of all gradients together; None for no clipping."""
    pace: float | None = None
    """Update of each layer, relative to its weights, at which it is held; None: not held."""
    standings: Mapping[str, Standing] = field(default_factory=dict[str, Standing])
    """Where the rules stand on their ladders at the beginning: by rule, of further guards as `1:RULE`."""
    run_path: Path | None = None
    """The run file of the attempts before, which this one goes on with."""
    resume: Path | None = None
    """The run file whose newest certified snapshot this attempt goes on from; None: from the beginning.

    What the snapshot holds counts, then: the model is not initialised anew, whatever `init` says.
    """
    best: Curve | None = field(default=None, repr=False)
    """The losses of the best attempt before, which this one has to beat; None where it only has to end."""
    curve: Curve = field(default_factory=Curve, repr=False, compare=False)
    """Its own losses."""
    doubt: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"], compare=False)
    """What the next attempt should change, where this one did badly though no rule has ended it."""
    normalised: bool = field(default=False, compare=False)
    """Whether its model has normalisations, which even out how it was initialised."""
    past: tuple[Any, ...] = ()
    """What the attempts before left for the closing summary."""
    guards: list[_Closable] = field(default_factory=list["_Closable"], repr=False)
    """Guards opened inside this attempt, closed when it ends."""
    handed: bool = False
    """Whether `stepguard run` makes the attempts, each in a process of its own."""
    link: Link = field(default_factory=Link, repr=False, compare=False)
    """What the guards tell the supervisor."""

    def standings_of(self, guard: int) -> dict[str, Standing]:
        """Where the rules of one guard stand; guards count from 0 in the order in which they are made."""
        parts = ((name.rpartition(":"), standing) for name, standing in self.standings.items())
        return {rule: standing for (place, _, rule), standing in parts if int(place or 0) == guard}

    def leave(self, guard: int, standings: Mapping[str, Standing]) -> None:
        """Keep where the rules of one guard stand, for the attempt that follows."""
        self.standings = {**self.standings, **{_key(guard, name): each for name, each in standings.items()}}

    def next(self, remedy: Mapping[str, float | str]) -> Attempt:
        """The attempt after this one, with a remedy of `lr`, `init`, `clip`, `pace`, `seed`, or some."""
        clips = [float(clip) for clip in (self.clip, remedy.get("clip")) if clip is not None]
        init, pace = remedy.get("init", self.init), remedy.get("pace", self.pace)
        return Attempt(
            number=self.number + 1,
            seed=self.seed + int(remedy.get("seed", 0)),
            lr_scale=self.lr_scale * float(remedy.get("lr", 1.0)),
            init=None if init is None else str(init),
            clip=min(clips) if clips else None,
            pace=None if pace is None else float(pace),
            standings={name: standing.next_attempt() for name, standing in self.standings.items()},
            run_path=self.run_path,
            normalised=self.normalised,
            past=self.past,
        )


def _key(guard: int, rule: str) -> str:
    """The name of a rule's standing: that of the rule, and for further guards their place before it."""
    return f"{guard}:{rule}" if guard else rule


CURRENT: ContextVar[Attempt | None] = ContextVar("stepguard_attempt", default=None)
"""Set by `supervise`, read by `watch`."""


def current_attempt() -> Attempt | None:
    """The attempt that `supervise` is making, or `stepguard run` with this process; None outside of both."""
    return CURRENT.get() or handed_attempt()


@cache
def handed_attempt() -> Attempt | None:
    """The attempt that `stepguard run` hands to this process; None where nobody does."""
    # Only here: the module knows attempts itself.
    from stepguard.recover.supervised_link import receive  # noqa: PLC0415

    return receive()
