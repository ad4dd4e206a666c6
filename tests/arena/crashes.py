"""The lecture's rising crash, measured with hindsight in a finished bare run, without the rule language."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from arena.record import Recording

WITHIN = 60
EARLY = 0.3
CLIMB = 3
"""Steps that a climb takes at least."""


def crash_steps(std: np.ndarray) -> np.ndarray:
    """Steps at which each layer's std has climbed threefold and fallen to a third: (steps, layers), as `std`.

    Of two neighbours the lesser one counts: what is high at one step only is an outlier in the data.
    """
    std = np.minimum(std, np.concatenate([std[:1], std[:-1]]))
    before = np.full((WITHIN - 1, std.shape[1]), np.nan)
    recent = sliding_window_view(np.concatenate([before, std]), WITHIN, axis=0)
    lows = np.fmin.accumulate(np.where(recent > 0, recent, np.inf), axis=2)[:, :, :-CLIMB]
    peaks = recent[:, :, CLIMB:]
    # Of the first windows only the end lies within the run.
    seen = np.add.outer(np.arange(len(std)), np.arange(WITHIN - CLIMB)) >= WITHIN - 1
    climbed = (peaks >= 3 * lows) & seen[:, None, :]
    top = np.max(np.where(climbed, peaks, -np.inf), axis=2)
    found = (top > 0) & (std <= top / 3)
    found[: CLIMB + 1] = False
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
    share = crash_steps(std[:, seen]).mean(axis=1)
    most = np.flatnonzero(share > 0.5)
    return int(most[0]) if len(most) else None
