"""The few colours of everything that a person sees; each reads on a dark and on a light background."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FIRST = "#2f8fc9"
"""The first line of a chart: blue."""
SECOND = "#d07c1f"
"""The second line of a chart: orange."""
BAD = "#d64545"
"""What is wrong: red."""
GOOD = "#3f9b57"
"""What ended well: green."""
QUIET = "dim"
"""Frames, axes and labels."""

SEVERITY: Mapping[str, str] = {"info": FIRST, "warning": SECOND, "critical": BAD}

_VIRIDIS = (
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e "
    "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)  # matplotlib's viridis (Smith and van der Walt, 2015) at 16 even places, perceptually uniform


def viridis(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Colours of shares in 0..1 on the viridis map: the same shape and three channels of 0..255 behind it."""
    table = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in _VIRIDIS.split()])
    places = np.linspace(0, 1, len(table))
    channels = [np.interp(shares, places, table[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.int64)
