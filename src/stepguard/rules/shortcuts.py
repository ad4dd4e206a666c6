"""Short ways of functions over steps, beside their definition in `windows`: bit for bit the same.

Two readings are enough for some, that of now and `prev`; medians and trends of the run are kept up to date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from stepguard.rules.cells import Series
from stepguard.rules.tree import Call
from stepguard.rules.values import Array, Scalar
from stepguard.series.history import History
from stepguard.series.medians import RunningMedian, RunningScore, Sorted, SortedLayers
from stepguard.series.trends import RunningTrend
from stepguard.series.windows import OF_LAYERS, OF_RUN, STALE

OF_SORTED = {"median": Sorted.median, "mad": Sorted.mad}
"""Functions that are computed from the sorted readings."""
OF_RUNNING: Mapping[str, tuple[Callable[[int], Any], Callable[[Any], float]]] = {
    **{name: (RunningMedian, function) for name, function in OF_SORTED.items()},
    "trend": (RunningTrend, RunningTrend.z),
}
"""Functions of numbers of the run that have a running form, and how it is asked."""
LONG = 400
"""Steps of a window from which on a layer's readings are kept sorted: shorter ones are sorted sooner."""


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


def of_running(
    name: str, series: Series, history: History, n: int, step: Callable[[], int]
) -> Callable[[], Scalar]:
    """Give the function of numbers of the run, from the running form of the last n steps."""
    make, function = OF_RUNNING[name]
    running = series.running(partial(make, n))

    def compute() -> Scalar:
        series.argument.get()  # raises what went wrong inside it
        full = history.first_of_run(series.key) <= step() - n + 1
        found = function(running().at(step())) if full else math.nan
        return None if math.isnan(found) else found

    return compute


def of_long_window(
    node: Call, series: Series, history: History, step: Callable[[], int], layers: int
) -> Callable[[], Array] | None:
    """Give `median`, `mad` or `zscore` of numbers per layer over a long window; None of others.

    The readings of each layer are kept in their order, so that a step costs little whatever the length.
    """
    n = int(node.settings.get("n", 0))
    if n < LONG or node.function not in {*OF_SORTED, "zscore"}:
        return None
    if node.function == "zscore":
        score = series.running(partial(RunningScore, n, layers, node.argument.positive))
        find, end = (lambda: score().at(step())), -1
    else:
        name, readings = node.function, series.running(partial(SortedLayers, n, layers))
        find, end = (lambda: readings().at(step(), name)), 0

    def compute() -> Array:
        found = find()
        full = history.window(series.key, step(), 1).full(step() + end, n)
        return np.full(full.shape, np.nan) if found is None else np.where(full, found, np.nan)

    return compute
