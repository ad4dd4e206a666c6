"""What `restart: auto` changes: a remedy made from what the attempt showed and what was tried before.

Flow: in come the frames of an attempt, one by one; out comes, when a rule asks for a restart, its remedy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.recover.attempt import Attempt
from stepguard.recover.curve import LITTLE
from stepguard.recover.pacing import known, pace, undone
from stepguard.series.blocks import Block
from stepguard.signals import Frame, Vector

HOT, COLD = 0.08, 2e-4
"""Updates of the median layer, relative to its weights, that are too large or too small to learn by.

Between them lie the 1e-3 that is the rule of thumb for a well-set rate, and the first steps of Adam at usual
rates (some hundredths).
"""
SAME = 0.02
"""Below this variation of its output a model tells no example from another; healthy ones began above 0.03."""
MUCH = 0.75
"""The share of its first value by which a loss came down much, whatever else is to be said."""
AIM = 0.01
"""The update of each layer, relative to its weights, that the next attempt holds."""
RAW = 10.0
"""So many times 1 is the spread of inputs that were not normalised; or a mean so many times the spread."""
READS = frozenset(
    {"act.std", "act.dead", "act.variation", "grad.rms", "update.ratio", "input.mean", "input.std"}
)
"""The signals from which a remedy is made, beside the loss."""
_RECENT = 50


def is_raw(mean: float, std: float) -> bool:
    """Whether inputs were given as they are, far from mean 0 and std 1."""
    return std > 0.0 and (not 1 / RAW < std < RAW or abs(mean) > RAW * std)


@dataclass
class Findings:
    """What the frames of an attempt say of its learning rate and its initialisation."""

    first: Frame | None = None
    """The first frame with all signals: the model as it was initialised."""
    loss: float | None = None
    """The first loss."""
    begun: Frame | None = None
    """The first with an update: it tells of the rate alone, later ones also of what that destroyed."""
    recent: deque[Frame] = field(default_factory=lambda: deque[Frame](maxlen=_RECENT))

    def state_dict(self) -> dict[str, Any]:
        """What the remedy is made from, in plain containers and numpy arrays."""
        frames = {"first": [self.first], "begun": [self.begun], "recent": list(self.recent)}
        packed = {name: [_packed(frame) for frame in found if frame] for name, found in frames.items()}
        return packed | {"loss": self.loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.loss = state["loss"]
        places = ("first", "begun", "recent")
        found = {name: [_unpacked(packed) for packed in state[name]] for name in places}
        self.first, self.begun = (next(iter(found[name]), None) for name in ("first", "begun"))
        self.recent = deque(found["recent"], maxlen=_RECENT)

    def see(self, frame: Frame) -> None:
        """Take one frame into account."""
        if self.loss is None:
            self.loss = frame.scalars.get("loss")
        if "update.ratio" in frame.vectors:
            self.begun = self.begun or frame
            self.recent.append(frame)
        elif self.first is None and "act.std" in frame.vectors:
            self.first = frame

    def see_all(self, block: Block) -> None:
        """Take many frames into account: but for the first ones, those that count are few."""
        updated, measured = (_present(block, name) for name in ("update.ratio", "act.std"))
        if self.loss is not None and self.begun is not None:
            before = measured[~np.isin(measured, updated)][:1]
            block = block.part(np.sort(np.concatenate((before, updated[-_RECENT:]))))
        for frame in block.frames():
            self.see(frame)

    @property
    def hot(self) -> float | None:
        """How large an update was that shows the learning rate as too high; None if none was."""
        early = 0.0 if self.begun is None else pace(self.begun)
        if early > HOT:
            return undone(early)
        late = max(map(pace, self.recent), default=0.0)
        return min(late, 10 * AIM) if late > HOT else None  # it ran away: how large it got says little

    @property
    def typical(self) -> float:
        """The median of the last updates."""
        return median(map(pace, self.recent)) if self.recent else 0.0

    @property
    def cold(self) -> float | None:
        """How small the updates are, if they are too small to learn by."""
        return self.typical if 0.0 < self.typical < COLD else None

    @property
    def ran_away(self) -> bool:
        """Whether it went too fast: updates that are too large, or a loss above its first."""
        losses = [frame.scalars["loss"] for frame in self.recent if "loss" in frame.scalars]
        if not losses or self.loss is None:
            return self.hot is not None
        return self.hot is not None or not median(losses) < self.loss + 0.2 * abs(self.loss)

    @property
    def badly_begun(self) -> bool:
        """Whether it could not learn as it was initialised: no signal, or one that explodes with depth."""
        still = self.begun is not None and pace(self.begun) == 0.0
        return self.first is not None and (still or _unfit(self.first))

    @property
    def raw(self) -> bool:
        """Whether the inputs were given as they are, far from mean 0 and std 1."""
        mean, std = (self._first_scalar(name) for name in ("input.mean", "input.std"))
        return is_raw(mean, std)

    def _first_scalar(self, name: str) -> float:
        return 0.0 if self.first is None else self.first.scalars.get(name, 0.0)

    @property
    def spoiled(self) -> bool:
        """Whether it could learn as it began, and at its end no more: its steps have done that."""
        return not self.badly_begun and bool(self.recent) and _unfit(self.recent[-1])

    def doubtful(self, first: float, last: float, *, again: bool = False) -> bool:
        """Whether an attempt that no rule has ended did badly all the same: little learned, and a reason.

        The reason is a first update that was larger than the weights, or a state in which nothing can be
        learned, at first or at last; any too large an update, where next to nothing was learned. Of healthy
        runs hardly one has such a reason, and those have learned much.

        Args:
            first: the loss that it began with.
            last: the loss that it ended with.
            again: whether it is not the first attempt. Then updates that were too small from first to last
                are a reason, too: a first one may be meant to move a trained model by a little.
        """
        hot = self.hot or 0.0
        cold = again and self.begun is not None and self.cold is not None and pace(self.begun) < COLD
        ill = hot > 1.0 or cold or self.badly_begun or self.spoiled
        least = MUCH if ill else LITTLE if hot else None
        return least is not None and not last < first - least * abs(first)

    @property
    def restless(self) -> bool:
        """Whether the std of the median layer has changed threefold in the last steps, as in a crash."""
        found = [known(frame, "act.std") for frame in self.recent]
        stds = [float(np.median(std)) for std in found if len(std)]
        return bool(stds) and not max(stds) < 3.0 * min(stds)


def _unfit(frame: Frame) -> bool:
    """Whether nothing can be learned in such a state: no signal, or one that explodes with depth."""
    std, dead = known(frame, "act.std"), known(frame, "act.dead")
    gradients, variation = known(frame, "grad.rms"), known(frame, "act.variation")
    return (
        bool((std == 0.0).any() or (std > 10.0).any())
        or bool((dead >= 0.95).any() or (variation[-1:] < SAME).any())
        or (len(gradients) > 1 and not 1e-4 < gradients[0] / max(gradients[-1], 1e-30) < 30.0)
    )


def _present(block: Block, name: str) -> NDArray[np.intp]:
    column = block.vectors.get(name)
    return np.flatnonzero(column.present if column else ())


def _packed(frame: Frame) -> dict[str, Any]:
    vectors = {name: tuple(frame.vectors[name]) for name in sorted(READS & frame.vectors.keys())}
    scalars = {name: value for name, value in frame.scalars.items() if name == "loss" or name in READS}
    return {"step": frame.step, "scalars": scalars, "vectors": vectors}


def _unpacked(packed: Mapping[str, Any]) -> Frame:
    vectors = {name: Vector(*vector) for name, vector in packed["vectors"].items()}
    return Frame(packed["step"], dict(packed["scalars"]), vectors)


def prescribe(findings: Findings, attempt: Attempt) -> Mapping[str, float | str]:
    """The remedy for the attempt after this one.

    How far each layer moves is held from now on; the learning rate is brought near to that, over decades if
    need be, lest updates are lost in rounding. A model that was badly initialised is initialised by LSUV;
    what the second attempt left as it was, the third changes.
    """
    remedy: dict[str, float | str] = {}
    if attempt.pace is None:
        remedy |= {"lr": _lr_factor(findings), "pace": AIM}
    else:
        remedy["pace"] = _next_pace(findings, attempt)
    if attempt.clip is None:
        remedy["clip"] = 1.0
    if attempt.init is None and (findings.badly_begun or attempt.number > 1):
        remedy["init"] = "standardise" if findings.raw else "lsuv"
    elif attempt.number > 2:
        remedy["init"], remedy["seed"] = "kaiming", 1
    return remedy


def _lr_factor(findings: Findings) -> float:
    """Factor on the learning rate with which the search begins, to one significant digit or two."""
    if findings.badly_begun:
        return 1.0  # the updates tell of the initialisation, not of the rate
    if findings.hot is not None:
        return _rounded(AIM / findings.hot, 1e-4, 0.3)
    if findings.cold is not None:
        return _rounded(AIM / findings.cold, 3.0, 1e4)
    return 0.3


def _next_pace(findings: Findings, attempt: Attempt) -> float:
    """Slower where it ran away; where it did not, another initialisation first, then faster.

    Where one way was no cure, the other is tried; but never a faster one after steps that did damage. Where
    slower ones did it again, a tenth. Where a schedule leaves next to nothing of a pace, as one that says the
    learning rate itself where it should say a factor of it, the pace makes up for it.
    """
    tried = attempt.pace or AIM
    if findings.cold is not None and not findings.ran_away:
        return _rounded(tried * AIM / findings.cold, tried, 1.0)
    if findings.ran_away or findings.spoiled or findings.restless:
        return 0.3 * AIM if tried > 0.3 * AIM else _rounded(0.1 * tried, 0.0, 1.0)
    if tried != AIM:
        return 3 * AIM if tried < AIM else 0.3 * AIM
    return AIM if attempt.init is None else 3 * AIM


def _rounded(factor: float, least: float, most: float) -> float:
    return float(f"{min(max(factor, least), most):.2g}")
