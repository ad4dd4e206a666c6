"""The lecture's three pictures of a recorded attempt, for each layer, in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from stepguard.report.charts import Axis, ColourfulDimension, LineChart
from stepguard.report.palette import QUIET, SEVERITY
from stepguard.report.summary import AlertCount
from stepguard.signals import HIST_BINS, Frame, Layer

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


def track(frames: Iterable[Frame], layers: Sequence[Layer], shown: Sequence[int]) -> Track:
    """Collect what the pictures need from recorded frames, for the layers at the places `shown`."""
    at = np.asarray(shown, np.int64)
    steps: list[int] = []
    sampled: list[int] = []
    scalars: dict[str, list[float]] = {name: [] for name in _SCALARS}
    vectors: dict[str, list[Array]] = {name: [] for name in _VECTORS}
    hist: list[NDArray[np.int32]] = []
    for frame in frames:
        steps.append(frame.step)
        for name, values in scalars.items():
            values.append(frame.scalars.get(name, np.nan))
        if frame.vectors or frame.hist is not None:
            sampled.append(frame.step)
            hist.append(_counts(frame, at))
            for name, rows in vectors.items():
                rows.append(_readings(frame, name, at))
    return Track(
        layers=tuple(layers[i] for i in shown),
        steps=np.array(steps, np.int64),
        scalars={name: np.array(values, np.float64) for name, values in scalars.items()},
        sampled=np.array(sampled, np.int64),
        vectors={name: np.reshape(rows, (len(sampled), len(at))) for name, rows in vectors.items()},
        hist=np.reshape(np.array(hist, np.int32), (len(sampled), len(at), HIST_BINS + 1)),
    )


def _readings(frame: Frame, signal: str, at: NDArray[np.int64]) -> Array:
    vector = frame.vectors.get(signal)
    if vector is None:
        return np.full(len(at), np.nan)
    values = vector.values[at].astype(np.float64)
    return np.where(vector.known[at], np.where(np.isfinite(values), values, np.inf), np.nan)


def _counts(frame: Frame, at: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.zeros((len(at), HIST_BINS + 1), np.int32) if frame.hist is None else frame.hist[at]


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
