"""What `restart: auto` changes: a remedy made from what the attempt showed and what was tried before.

Flow: in come the frames of an attempt, one by one; out comes, when a rule asks for a restart, its remedy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.recover.attempt import Attempt
from stepguard.signals import Frame, Vector

HOT, COLD = 0.08, 2e-4
"""Updates of the median layer, relative to its weights, that are too large or too small to learn by.

Between them lie the 1e-3 that is the rule of thumb for a well-set rate, and the first steps of Adam at usual
rates (some hundredths).
"""
AIM = 0.015
"""The update that a corrected learning rate aims at."""
READS = frozenset({"act.std", "act.dead", "grad.rms", "update.ratio"})
"""The signals per layer from which a remedy is made."""
_SURE = 0.9999
"""Above this ratio nothing but the new update is left of the weights: how large it was is not known."""
_RECENT = 50


@dataclass
class Findings:
    """What the frames of an attempt say of its learning rate and its initialisation."""

    first: Frame | None = None
    """The first frame with all signals: the model as it was initialised."""
    begun: Frame | None = None
    """The first with an update: it tells of the rate alone, later ones also of what that destroyed."""
    recent: deque[Frame] = field(default_factory=lambda: deque[Frame](maxlen=_RECENT))

    def state_dict(self) -> dict[str, Any]:
        """What the remedy is made from, in plain containers and numpy arrays."""
        frames = {"first": [self.first], "begun": [self.begun], "recent": list(self.recent)}
        return {name: [_packed(frame) for frame in found if frame] for name, found in frames.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        found = {name: [_unpacked(packed) for packed in frames] for name, frames in state.items()}
        self.first, self.begun = (next(iter(found[name]), None) for name in ("first", "begun"))
        self.recent = deque(found["recent"], maxlen=_RECENT)

    def see(self, frame: Frame) -> None:
        """Take one frame into account."""
        if "update.ratio" in frame.vectors:
            self.begun = self.begun or frame
            self.recent.append(frame)
        elif self.first is None and "act.std" in frame.vectors:
            self.first = frame

    @property
    def hot(self) -> float | None:
        """How large an update was that shows the learning rate as too high; None if none was."""
        early = 0.0 if self.begun is None else _pace(self.begun)
        if early > HOT:
            return _undone(early)
        late = max(map(_pace, self.recent), default=0.0)
        return min(late, 10 * AIM) if late > HOT else None  # it ran away: how large it got says little

    @property
    def typical(self) -> float:
        """The median of the last updates."""
        return median(map(_pace, self.recent)) if self.recent else 0.0

    @property
    def cold(self) -> float | None:
        """How small the updates are, if they are too small to learn by."""
        return self.typical if 0.0 < self.typical < COLD else None

    @property
    def badly_begun(self) -> bool:
        """Whether it could not learn as it was initialised: no signal, or one that explodes with depth."""
        if self.first is None:
            return False
        std, dead = _known(self.first, "act.std"), _known(self.first, "act.dead")
        gradients = _known(self.first, "grad.rms")
        still = self.begun is not None and _pace(self.begun) == 0.0
        return (
            still
            or bool((std == 0.0).any() or (std > 10.0).any())
            or bool((dead >= 0.95).any())
            or (len(gradients) > 1 and not 1e-4 < gradients[0] / max(gradients[-1], 1e-30) < 30.0)
        )


def _packed(frame: Frame) -> dict[str, Any]:
    vectors = {name: tuple(frame.vectors[name]) for name in sorted(READS & frame.vectors.keys())}
    return {"step": frame.step, "vectors": vectors}


def _unpacked(packed: Mapping[str, Any]) -> Frame:
    vectors = {name: Vector(*vector) for name, vector in packed["vectors"].items()}
    return Frame(packed["step"], vectors=vectors)


def _pace(frame: Frame) -> float:
    """The update of the median layer, relative to its weights; not finite counts as all of them."""
    found = _known(frame, "update.ratio")
    return float(np.median(np.nan_to_num(found, nan=1.0, posinf=1.0))) if len(found) else 0.0


def _known(frame: Frame, signal: str) -> NDArray[np.float64]:
    vector = frame.vectors.get(signal)
    return np.empty(0) if vector is None else vector.values[vector.known].astype(np.float64)


def _undone(ratio: float) -> float:
    """Update relative to the weights before it, from the one relative to the weights after it.

    The two are at right angles, near enough, in so many dimensions.
    """
    ratio = min(ratio, _SURE)
    return ratio / math.sqrt(1.0 - ratio * ratio)


def prescribe(findings: Findings, attempt: Attempt) -> Mapping[str, float | str]:
    """The remedy for the attempt after this one.

    The learning rate is sought over decades by the size of the updates; a model that was badly initialised is
    initialised by LSUV; what the second attempt left as it was, the third changes.
    """
    remedy: dict[str, float | str] = {"lr": _lr_factor(findings, attempt)}
    if attempt.clip is None:
        remedy["clip"] = 1.0
    if attempt.init is None and (findings.badly_begun or attempt.number > 1):
        remedy["init"] = "lsuv"
    elif attempt.init == "lsuv" and attempt.number > 2:
        remedy["init"], remedy["seed"] = "kaiming", 1
    return remedy


def _lr_factor(findings: Findings, attempt: Attempt) -> float:
    """Factor on the learning rate, to one significant digit or two."""
    if findings.badly_begun and attempt.number == 1:
        return 1.0  # the updates tell of the initialisation, not of the rate
    if findings.hot is not None:
        return _rounded(AIM / findings.hot, 1e-4, 0.3)
    if findings.cold is not None:
        return _rounded(AIM / findings.cold, 3.0, 1e4)
    if attempt.number == 1:
        return 0.3
    return _rounded(AIM / 2 / max(findings.typical, 1e-9), 0.1, 10.0)


def _rounded(factor: float, least: float, most: float) -> float:
    return float(f"{min(max(factor, least), most):.2g}")
