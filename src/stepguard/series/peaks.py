"""Peaks of many series at once, each with the trough that it rose from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepguard.series.history import Array

Truth = NDArray[np.bool_]


def highest(values: Array, second_least: Truth, rise: Array) -> tuple[Array, Array]:
    """Give the highest peak that is `rise` times its trough, and that trough, both of shape (layers,).

    A peak is the lesser of two readings in a row, its trough the least reading above 0 before it, or the
    second least. NaN where there is none.

    Args:
        values: of shape (steps, layers), NaN only before a layer's first reading.
        second_least: of shape (layers,).
        rise: of shape (layers,).
    """
    if len(values) < 2:
        return np.full(rise.shape, np.nan), np.full(rise.shape, np.nan)
    before, level = values[:-1], np.minimum(values[:-1], values[1:])
    low = _troughs(np.where(before > 0, before, np.inf), second_least)
    level[~(level >= rise * low)] = -np.inf
    at, layers = np.argmax(level, axis=0), np.arange(rise.size)
    peak, trough = level[at, layers], low[at, layers]
    none = np.isneginf(peak)
    return np.where(none, np.nan, peak), np.where(none, np.nan, trough)


def _troughs(above: Array, second_least: Truth) -> Array:
    """The least reading so far, or the second least, at each layer."""
    least = np.minimum.accumulate(above, axis=0)
    if not second_least.any():
        return least
    pairs = np.vstack([np.full_like(above[:1], np.inf), np.maximum(above[1:], least[:-1])])
    second = np.minimum.accumulate(pairs, axis=0)
    return second if second_least.all() else np.where(second_least, second, least)
