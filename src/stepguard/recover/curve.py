"""The losses of an attempt, and whether it does worse than another one did at the same step. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

BEHIND = "behind-another-attempt"
"""What ends an attempt that does worse, in the place of a rule's name."""
TOLD = 0.75
"""The share of the training before which a challenger is not judged: fast ones begin with noise."""
LEEWAY = 2.0
"""How much less of the best one's gain a challenger may have, for the share of the training that is left.

A pace that is brought down at last brings most of a fast one's gain: half-way it may have gained nothing yet.
"""

SURE = 2.0
"""Standard errors of both levels that noise alone may do."""
LITTLE = 0.1
"""The share of its first value by which a loss came down where next to nothing was learned."""
_OF_MEDIAN = 1.4826 * 1.2533
"""From the median deviation to the standard one, and from there to the error of a median, of normal noise."""


class Curve:
    """The losses of an attempt, by step; NaN where there was none.

    A batch that was left out tells nothing of the weights: they are worth what they were the step before.
    """

    def __init__(self) -> None:
        self._losses = array("f")

    def __len__(self) -> int:
        """The steps so far."""
        return len(self._losses)

    def see(self, step: int, loss: float | None) -> None:
        """Take the loss of a step; those that were left out before it are not known."""
        self._losses.extend([math.nan] * (step - len(self)))
        self._losses.append(math.nan if loss is None else loss)

    def leave_out(self, step: int) -> None:
        """Take a step whose batch was left out."""
        self.see(step, self._losses[step - 1] if 0 < step == len(self) else None)

    def state_dict(self) -> dict[str, Any]:
        """The losses so far, as single-precision floats."""
        return {"losses": np.array(self._losses, dtype=np.float32)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._losses = array("f", np.asarray(state["losses"], dtype=np.float32).tobytes())

    def level(self, step: int, window: int) -> float:
        """The median of the losses up to a step; one that is unknown or no number counts as infinite."""
        found = self._losses[max(0, step + 1 - window) : step + 1]
        return median(math.inf if math.isnan(loss) else loss for loss in found) if found else math.inf

    def doubt(self, step: int, window: int) -> float:
        """The standard error of `level`, from the spread of the losses about it; 0 without any."""
        found = [loss for loss in self._losses[max(0, step + 1 - window) : step + 1] if math.isfinite(loss)]
        if not found:
            return 0.0
        middle = median(found)
        return _OF_MEDIAN * median(abs(loss - middle) for loss in found) / math.sqrt(len(found))

    @property
    def first(self) -> float:
        """What it began with: the first loss, or the median of the first ten where that is less."""
        return min(self.level(0, 1), self.level(9, 10))

    @property
    def last(self) -> float:
        """What it ended with: the median of its last twentieth, of ten losses at least."""
        return self.level(len(self) - 1, max(10, len(self) // 20))

    def fell_to(self, share: float, *, of: float) -> bool:
        """Whether at its end no more than a share of what it began `of` was left, as of a loss below zero.

        What is left of a loss without a floor is not known: rewards and likelihoods are none to go by.
        """
        return self.last < max(share * of, 0.0) < math.inf

    @property
    def stuck(self) -> bool:
        """Whether at its end next to nothing was learned."""
        return not self.fell_to(1.0 - LITTLE, of=self.first)


def behind(curve: Curve, best: Curve, step: int) -> bool:
    """Whether an attempt does worse at this step than the best one did: told twenty times, and at its end.

    Before the end it may be behind by a part of what the best one had gained by then, less and less, and by
    what noise alone may do; at the end, too, of one that was stuck: there is nothing to lose.
    """
    window = max(10, len(best) // 20)
    last = step >= len(best) - 1
    left = 0.0 if last else 1.0 - step / len(best)
    if step < TOLD * len(best) or (not last and step % window):
        return False
    theirs = best.level(min(step, len(best) - 1), window)
    gained = best.first - theirs
    margin = LEEWAY * left * gained if 0.0 < gained < math.inf else 0.0
    if not last or best.stuck:
        margin += SURE * (curve.doubt(step, window) + best.doubt(step, window))
    return not curve.level(step, window) <= theirs + margin
