"""The lecture's rising crash, measured with hindsight in a finished bare run, without the rule language."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from arena.record import Recording

WITHIN = 60
EARLY = 0.3
CLIMB = 3
"""Steps that a climb takes at least."""


def crash_steps(std: np.ndarray) -> np.ndarray:
    """Steps, of shape (steps,), at which one layer's std has climbed threefold and fallen to a third.

    Of two neighbours the lesser one counts: what is high at one step only is an outlier in the data.
    """
    std = np.minimum(std, np.concatenate([std[:1], std[:-1]]))
    found = np.zeros(len(std), dtype=np.bool_)
    for now in range(CLIMB + 1, len(std)):
        recent = std[max(0, now - WITHIN + 1) : now + 1]
        lows = np.fmin.accumulate(np.where(recent > 0, recent, np.inf))[:-CLIMB]
        peaks = recent[CLIMB:]
        top = np.max(np.where(peaks >= 3 * lows, peaks, -np.inf), initial=-np.inf)
        found[now] = top > 0 and recent[-1] <= top / 3
    return found


def crashes(recording: Recording) -> int | None:
    """The first step at which most layers have crashed, early in the run; None if there is none."""
    early = recording.frames[: max(1, int(EARLY * len(recording.frames)))]
    if not any("act.std" in frame.vectors for frame in early):
        return None
    std = np.stack(
        [
            frame.vectors["act.std"].values
            if "act.std" in frame.vectors
            else np.full(len(recording.layers), np.nan)
            for frame in early
        ]
    ).astype(np.float64)
    seen = np.isfinite(std).any(axis=0)
    if not seen.any():
        return None
    at = np.stack([crash_steps(column) for column in std.T[seen]])
    share = at.mean(axis=0)
    most = np.flatnonzero(share > 0.5)
    return int(most[0]) if len(most) else None
