"""The table at the foot of the terminal while a training runs: what it shows, not how it is drawn."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from stepguard.report.palette import BAD, FIRST, QUIET, SEVERITY
from stepguard.report.sparkline import NONFINITE, blocks
from stepguard.report.words import number
from stepguard.rules.alert import Change
from stepguard.rules.rule import Severity
from stepguard.signals import Frame, Layer, Vector

ROWS = 12
"""Layers that are shown at most."""
_READINGS = 24
_NAME = 28
_ROOMY = 100
"""Characters of a terminal from which on types are shown, and courses at full length."""
_COLUMNS: Mapping[str, str] = {
    "": "act.std",
    "near zero": "act.near_zero",
    "dead": "act.dead",
    "grad norm": "grad.norm",
    "update": "update.ratio",
}
_SHARES = {"act.near_zero", "act.dead"}


class Trail:
    """The course of a number from the beginning on, in bounded room: when full, every second entry goes."""

    def __init__(self, room: int) -> None:
        self.values: list[float] = []
        self._room = room
        self._stride = 1
        self._seen = 0

    def push(self, value: float) -> None:
        """Take the next value; only each one in step with the stride is kept."""
        if self._seen % self._stride == 0:
            self.values.append(value)
        self._seen += 1
        if len(self.values) > self._room:
            del self.values[1::2]
            self._stride *= 2


class Board:
    """The newest frames, and the alerts that fire. Taking a frame stores references; only `render` works.

    `mark` stands in its heading, as it reads when it is drawn.
    """

    def __init__(self, mark: object = "") -> None:
        self._mark = mark
        self._layers: Sequence[Layer] = ()
        self._newest: Frame | None = None
        self._sampled: deque[Frame] = deque(maxlen=_READINGS)
        self._losses = Trail(4 * _READINGS)
        self._firing: dict[tuple[str, str | None], Severity] = {}

    def take(self, frame: Frame, layers: Sequence[Layer]) -> None:
        """Remember a frame and the layers that its vectors speak of."""
        self._layers = layers
        self._newest = frame
        if frame.vectors:
            self._sampled.append(frame)
        if "loss" in frame.scalars:
            self._losses.push(frame.scalars["loss"])

    def change(self, changes: Iterable[Change]) -> dict[str, int]:
        """Remember which alerts fire, at which layers.

        Returns the rules that stopped firing, each with the number of layers at which it did.
        """
        over: Counter[str] = Counter()
        for change in changes:
            if change.state == "firing":
                self._firing |= {(change.rule, at): change.severity for at in _places(change)}
                continue
            for rule, at in list(self._firing):
                if rule == change.rule and change.layer in (None, at):
                    del self._firing[rule, at]
                    over[rule] += at is not None
        return dict(over)

    def render(self, width: int, rows: int = ROWS) -> RenderableType:
        """The whole board for a terminal of that width with at most that many layers, in depth order.

        Shown are those with firing alerts first, then those whose std lies farthest from 1.
        """
        shown = self._interesting(min(rows, ROWS))
        hidden = len(self._layers) - len(shown)
        parts: list[RenderableType] = [
            Rule(f"stepguard{self._mark}", style=QUIET, align="left"),
            self._heading(),
        ]
        if shown:
            parts.append(self._table(shown, roomy=width >= _ROOMY))
        if shown and hidden:
            parts.append(Text(f"... and {hidden} more", style=QUIET))
        return Group(*parts)

    def _heading(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        if self._newest is None:
            return text
        scalars = self._newest.scalars
        text.append("step ", QUIET).append(f"{self._newest.step:,}", "bold")
        if "loss" in scalars:
            line = blocks(self._losses.values, _READINGS)
            text.append("   loss ", QUIET).append(line, FIRST).append(f" {number(scalars['loss'])}", "bold")
        for name, label in (("grad_norm", "grad norm"), ("lr", "lr")):
            if name in scalars:
                text.append(f"   {label} ", QUIET).append(number(scalars[name]))
        for (rule, layer), severity in self._firing.items():
            if layer is None:
                text.append(f"   {rule}", f"bold {SEVERITY[severity]}")
        return text

    def _interesting(self, rows: int) -> list[int]:
        if not self._sampled:
            return []
        firing = {layer for _, layer in self._firing}
        deviation = self._deviation()
        order = sorted(
            range(len(self._layers)),
            key=lambda i: (self._layers[i].name not in firing, -deviation[i]),
        )
        return sorted(order[: max(rows, 0)])

    def _deviation(self) -> NDArray[np.float64]:
        """How far the median std of each layer lies from 1, in powers of ten; 0 where it was not measured."""
        std = [self._vector(frame, "act.std") for frame in self._sampled]
        values, known = np.array([v.values for v in std], float), np.array([v.known for v in std])
        with np.errstate(divide="ignore", invalid="ignore"):
            away = np.fmin(np.abs(np.log10(values)), 99)  # 99 stands for zero, infinity and NaN
        return np.median(np.where(known, away, 0), axis=0)

    def _vector(self, frame: Frame, signal: str) -> Vector:
        nothing = Vector(np.zeros(len(self._layers), np.float32), np.zeros(len(self._layers), np.bool_))
        return frame.vectors.get(signal, nothing)

    def _table(self, shown: list[int], *, roomy: bool) -> Table:
        """One row a layer. Fixed widths keep the columns where they are, and spare rich the measuring."""
        names = [_tail(self._layers[i].name) for i in shown]
        types = [self._layers[i].type if roomy else "" for i in shown]
        readings = _READINGS if roomy else _READINGS // 2
        table = Table(box=None, padding=0, header_style=QUIET)
        table.add_column("layer", no_wrap=True, width=max(map(len, ("layer", *names))) + 2)
        if roomy:
            table.add_column("type", no_wrap=True, width=max(map(len, ("type", *types))) + 2, style=QUIET)
        table.add_column("std", no_wrap=True, width=readings, style=FIRST)
        for name, signal in _COLUMNS.items():
            room = max(len(name), 4 if signal in _SHARES else 8)
            table.add_column(name, justify="right", no_wrap=True, width=room + 2)
        table.add_column("  alerts", no_wrap=True, overflow="ellipsis")
        std = [self._vector(frame, "act.std") for frame in self._sampled][-readings:]
        newest = {signal: self._vector(self._sampled[-1], signal) for signal in _COLUMNS.values()}
        for i, name, kind in zip(shown, names, types, strict=True):
            head = (name, kind) if roomy else (name,)
            course = _course([_reading(vector, i) for vector in std])
            cells = [_cell(signal, _reading(vector, i)) for signal, vector in newest.items()]
            table.add_row(*map(Text, head), course, *cells, self._alerts(self._layers[i].name))
        return table

    def _alerts(self, layer: str) -> Text:
        text = Text()
        for (rule, at), severity in self._firing.items():
            if at == layer:
                text.append(" " if text else "  ").append(rule, SEVERITY[severity])
        return text


def _places(change: Change) -> tuple[str | None, ...]:
    """The layer of an alert; for one on the whole run, that and the layers at which its condition holds."""
    if change.layer is not None or change.evidence is None:
        return (change.layer,)
    return (None, *change.evidence.layers)


def _reading(vector: Vector, i: int) -> float | None:
    return float(vector.values[i]) if vector.known[i] else None


def _course(readings: list[float | None]) -> Text:
    text = Text(blocks(readings, _READINGS))
    text.highlight_words([NONFINITE], style=BAD)
    return text


def _cell(signal: str, value: float | None) -> str:
    if value is not None and signal in _SHARES and np.isfinite(value):
        return f"{value:.0%}"
    return number(value)


def _tail(name: str) -> str:
    return name if len(name) <= _NAME else "..." + name[3 - _NAME :]
