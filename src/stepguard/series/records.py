"""What a run file tells beside its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stepguard.signals import Layer


class Meta(NamedTuple):
    """Who wrote a run file."""

    format: int
    """Version of the format."""
    stepguard: str
    """Version of the package that created the file."""


class AttemptRecord(NamedTuple):
    """One try at the training."""

    number: int
    info: Mapping[str, Any]
    """What the writer said of it: seed, remedy, rules."""
    layers: tuple[Layer, ...]
    """In depth order; empty before the first frame."""
    outcome: str | None
    """None while it goes on, and where it was killed."""


class Event(NamedTuple):
    """Something that happened: an alert changed, a decision was taken, frames were dropped."""

    kind: str
    step: int
    data: Mapping[str, Any]


class Thinned(NamedTuple):
    """Full frames that were cut to their scalars to keep the file within its limit."""

    first: int
    """Step of the first block that lost some."""
    last: int
    """Step of the last frame of the last such block."""
    frames: int
    """How many frames lost their layers."""
