"""Functions of two readings, that of now and `prev`: short ways beside their definition in `windows`."""

from __future__ import annotations

import math
from collections.abc import Callable

from stepguard.rules.cells import Series
from stepguard.rules.values import Array, Scalar
from stepguard.series.history import History
from stepguard.series.windows import OF_LAYERS, OF_RUN, STALE


def of_two_numbers(
    name: str, series: Series, history: History, n: int, step: Callable[[], int]
) -> Callable[[], Scalar]:
    """Give the function of numbers of the run, from the reading now and that n steps ago."""
    function = OF_RUN[name]

    def compute() -> Scalar:
        now = series.argument.get()
        now = None if now is None or not math.isfinite(now) else now
        return function(now, history.newest(series.key, step() - n, n + STALE))

    return compute


def of_two_rows(
    name: str,
    series: Series,
    history: History,
    n: int,
    step: Callable[[], int],
    *,
    windowed: Callable[[], Array],
) -> Callable[[], Array]:
    """Give the function of numbers per layer; `windowed` where no single row has the readings of all."""
    function = OF_LAYERS[name]

    def compute() -> Array:
        before = history.newest_row(series.key, step() - n, n + STALE)
        now = None if before is None else history.newest_row(series.key, step(), 1)
        return windowed() if before is None or now is None else function(now, before)

    return compute
