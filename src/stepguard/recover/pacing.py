"""How fast weights move, and the search for the learning rate at which they move as fast as they should.

Flow: in come an attempt's first frames; out go factors on the learning rate. Without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepguard.signals import Frame

STEPS = 20
"""The search goes on for so many steps of an attempt."""
START = 0.01
"""The first step is so much smaller than what was asked for: the measuring must not do the damage."""
MOST = 10.0
"""The learning rate is raised by this factor a step at most, but for the first time."""
MUCH = 3.0
"""So many times the aim is too fast, whenever it comes to that."""
SLOW = 0.2
"""How much of what one step asks for is done after the search."""
_STATE = ("_asked", "_part", "_used", "_most", "_found", "_kept")
"""What a pacer remembers from one step to the next."""
_SURE = 0.9999
"""Above this ratio nothing but the new update is left of the weights: how large it was is not known."""


def known(frame: Frame, signal: str) -> NDArray[np.float64]:
    """The values of the layers that have one, of shape (layers with a value,)."""
    vector = frame.vectors.get(signal)
    return np.empty(0) if vector is None else vector.values[vector.known].astype(np.float64)


def pace(frame: Frame) -> float:
    """The update of the median layer, relative to its weights; not finite counts as all of them."""
    found = known(frame, "update.ratio")
    return float(np.median(np.nan_to_num(found, nan=1.0, posinf=1.0))) if len(found) else 0.0


def undone(ratio: float) -> float:
    """Update relative to the weights before it, from the one relative to the weights after it.

    The two are at right angles, near enough, in so many dimensions.
    """
    ratio = min(ratio, _SURE)
    return ratio / math.sqrt(1.0 - ratio * ratio)


def _annealed(progress: float) -> float:
    """The share of the pace that is left: all of it in the first half of the training, hardly any at last."""
    return min(1.0, max(0.01, 2.0 * (1.0 - progress)))


class Pacer:
    """Called with an attempt's frames: seeks the learning rate at which the median layer moves by `aim`.

    Within a schedule the aim is the same share of `aim` as the learning rate is of its largest: a warm-up
    stays one. After the search the learning rate is only lowered: where a schedule goes on to more than was
    found, and where the weights come to move much faster than they should.

    Where the length of the training is known, the pace is kept by and by, and brought down to nothing in the
    second half: gradients that shrink would leave the weights where they are, and a pace that lasts would
    leave them restless (Bernstein et al. 2020, arXiv 2002.03432).

    Args:
        aim: the update, relative to the weights.
        lr: tells the learning rate of the step to come.
        scale: scales it, so that it lasts.
        share: tells which share of its largest value it has now in its schedule, 0..1.
        total_steps: planned length of the training, if known.
    """

    def __init__(
        self,
        aim: float,
        lr: Callable[[], float],
        scale: Callable[[float], object],
        share: Callable[[], float],
        total_steps: int | None = None,
    ) -> None:
        self._aim, self._lr, self._scale, self._share = aim, lr, scale, share
        self._steps = total_steps
        self._asked = 0.0
        self._part = 1.0
        """The share that the last step had."""
        self._used = 0.0
        """The learning rate of the last step, from which the next one is told."""
        self._most = math.inf
        """The largest learning rate that a schedule may come to."""
        self._found = False
        self._kept: tuple[float, float] | None = None
        """The rate that keeps the pace, at the full share, and the largest that it may become."""

    def state_dict(self) -> dict[str, Any]:
        """How far the search has come, in plain numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in _STATE:
            setattr(self, name, state[name])

    def __call__(self, frame: Frame) -> None:
        """Correct the learning rate of the step that this frame comes before."""
        now = self._lr()
        if now <= 0.0:
            return
        moved = undone(pace(frame))
        if frame.step > STEPS and self._steps is not None:
            wanted = self._keeping(moved, frame.step / self._steps)
        elif frame.step > STEPS:
            wanted = min(now, self._bound(moved))
        elif not self._used:
            self._asked, wanted = now, START * now
        elif len(known(frame, "update.ratio")):
            wanted = self._wanted(moved)
        else:
            wanted = self._used
        if wanted != now:
            self._scale(wanted / now)
        self._used, self._part = self._lr(), self._share()
        if frame.step <= STEPS:
            self._most = 1.001 * self._used / self._part
        elif self._steps is not None:
            self._part *= _annealed(frame.step / self._steps)

    def _keeping(self, moved: float, progress: float) -> float:
        """The learning rate that keeps the pace, of which one step tells little."""
        rate, most = self._kept or (self._used / self._part, MOST * self._used / self._part)
        if moved > 0.0:
            rate *= min(max(self._aim * self._part / moved, 0.5), 1.5) ** SLOW
        self._kept = min(rate, most), most
        return self._kept[0] * self._share() * _annealed(progress)

    def _bound(self, moved: float) -> float:
        """The largest learning rate that the step to come may have, after one that moved so much."""
        most = MUCH * self._aim * self._part
        if moved > most:
            self._most *= math.sqrt(most / moved)
        return self._most * self._share()

    def _wanted(self, moved: float) -> float:
        if moved == 0.0:  # skipped; or too small to be seen: up to what was asked for
            return self._used if self._found else min(MOST * self._used, self._asked)
        factor = self._aim * self._part / moved
        if self._found:  # one step says little
            factor = min(math.sqrt(factor), MOST)
        self._found = True
        return factor * self._used * self._share() / self._part
