"""The lecture's three pictures of a recorded attempt, for each layer, in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from stepguard.report.charts import Axis, ColourfulDimension, LineChart
from stepguard.report.palette import QUIET, SEVERITY
from stepguard.report.summary import AlertCount
from stepguard.series.blocks import Block, Column
from stepguard.signals import HIST_BINS, Layer

Array = NDArray[np.float64]

_GAP = 2
_NARROWEST = 24
"""Characters that a chart needs at least."""
_SCALARS: Mapping[str, str] = {"loss": "loss", "grad_norm": "grad norm", "lr": "learning rate"}
_VECTORS = ("act.mean", "act.std", "act.near_zero", "act.dead")


@dataclass(frozen=True)
class Track:
    """The recorded numbers of one attempt, as plain arrays. NaN stands for "not measured"."""

    layers: tuple[Layer, ...]
    steps: NDArray[np.int64]
    """Every recorded step, shape [steps]."""
    scalars: Mapping[str, Array]
    """Signals per run, each of shape [steps]."""
    sampled: NDArray[np.int64]
    """The steps at which layers were measured, shape [sampled]."""
    vectors: Mapping[str, Array]
    """Signals per layer, each of shape [sampled, layers]; infinite where the reading was not finite."""
    hist: NDArray[np.int32]
    """`act.hist`, shape [sampled, layers, HIST_BINS + 1]; all zero where not measured."""


DRAWN = frozenset({*_SCALARS, *_VECTORS})
"""The signals that the pictures show, beside the histograms."""


def track(blocks: Iterable[Block], layers: Sequence[Layer], shown: Sequence[int]) -> Track:
    """Collect what the pictures need from recorded blocks, for the layers at the places `shown`."""
    at = np.asarray(shown, np.int64)
    parts = [_part(block, at) for block in blocks] or [_part(_NOTHING, at)]
    return Track(
        layers=tuple(layers[i] for i in shown),
        steps=np.concatenate([part.steps for part in parts]),
        scalars={name: np.concatenate([part.scalars[name] for part in parts]) for name in _SCALARS},
        sampled=np.concatenate([part.sampled for part in parts]),
        vectors={name: np.concatenate([part.vectors[name] for part in parts]) for name in _VECTORS},
        hist=np.concatenate([part.hist for part in parts]),
    )


class _Part(NamedTuple):
    """What a track holds of one block."""

    steps: NDArray[np.int64]
    sampled: NDArray[np.int64]
    hist: NDArray[np.int32]
    scalars: Mapping[str, Array]
    vectors: Mapping[str, Array]


_NOTHING = Block(np.zeros(0, np.int64), {}, {}, None, np.zeros(0, np.bool_))


def _part(block: Block, at: NDArray[np.int64]) -> _Part:
    measured = block.hist_present.copy()
    for name in _VECTORS:
        if name in block.vectors:
            measured |= block.vectors[name].present
    scalars = {name: _scalar(block.scalars.get(name), len(block)) for name in _SCALARS}
    vectors = {name: _readings(block.vectors.get(name), measured, at) for name in _VECTORS}
    counts = np.zeros((int(measured.sum()), len(at), HIST_BINS + 1), np.int32)
    if block.hist is not None:
        counts[:] = block.hist[measured][:, at]
    return _Part(block.steps, block.steps[measured], counts, scalars, vectors)


def _scalar(column: Column | None, frames: int) -> Array:
    return np.full(frames, np.nan) if column is None else column.values


def _readings(column: Column | None, measured: NDArray[np.bool_], at: NDArray[np.int64]) -> Array:
    if column is None:
        return np.full((int(measured.sum()), len(at)), np.nan)
    values, known = column.values[measured][:, at].astype(np.float64), column.known[measured][:, at]
    return np.where(known, np.where(np.isfinite(values), values, np.inf), np.nan)


@dataclass(frozen=True)
class Pictures:
    """What moves in the run, then for each layer mean and std, the colourful dimension, the dead chart."""

    track: Track
    alerts: Sequence[AlertCount] = ()
    """Named beside the layers at which they fired."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        across = max(min(options.max_width // (_NARROWEST + _GAP), 3), 1)
        width = min(options.max_width // across - _GAP, 60)
        if self.track.steps.size:
            yield _in_rows(list(self._run(width)), across)
        for i, layer in enumerate(self.track.layers):
            yield self._name(layer)
            yield self._layer(i, width, across)

    def _name(self, layer: Layer) -> Text:
        text = Text.assemble("\n", (layer.name, "bold"), (f" {layer.type}", QUIET))
        for alert in self.alerts:
            if layer.name in alert.layers:
                text.append(f"  {alert.rule} from step {alert.first_step:,}", SEVERITY[alert.severity])
        return text

    def _run(self, width: int) -> Iterator[RenderableType]:
        axis = Axis(self.track.steps, width)
        for name, label in _SCALARS.items():
            values = self.track.scalars[name]
            if np.unique(values[~np.isnan(values)]).size > 1:
                yield LineChart(axis, {label: values})

    def _layer(self, i: int, width: int, across: int) -> RenderableType:
        if not self.track.sampled.size:
            return Text("nothing was measured here", style=QUIET)
        axis = Axis(self.track.sampled, width)
        mean, std, near_zero, dead = (self.track.vectors[name][:, i] for name in _VECTORS)
        charts = (
            LineChart(axis, {"mean": mean, "std": std}),
            ColourfulDimension(axis, self.track.hist[:, i]),
            LineChart(axis, {"near zero": near_zero, "dead": dead}, shares=True),
        )
        return _in_rows(charts, across)


def _in_rows(charts: Sequence[RenderableType], across: int) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    for start in range(0, len(charts), across):
        grid.add_row(*charts[start : start + across])
    return grid
