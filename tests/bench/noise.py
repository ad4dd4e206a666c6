"""False alarms of every detector on noise, and how long it takes to see a change.

    python tests/bench/noise.py [--json FILE] [--layers 400] [--steps 1000]

The noises e have variance 1 (t: 3), all layers at once, each its own series. A positive series is exp(0.1 e),
but for the log-normal one, which is exp(0.5 e). A false alarm is a step at which a detector begins to hold,
from the step on at which its window is full. `crash` (rise=3, fall=3) answers before: those steps have a line
of their own. As a rule has it inside `share`, it is looked at as `share(crash(x)) > 0.5` of ten layers.
For `plateau` the noise lies on a fall by twice `by` in its window, since on plain noise it holds rightly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from stepguard.series import detectors, windows
from stepguard.series.history import Window

NOISES = ("normal", "t(3)", "log-normal 0.5", "AR(1) 0.5", "AR(1) 0.9")
Changes = dict[str, Callable[[np.ndarray], np.ndarray]]


def _own_crash(age: np.ndarray) -> np.ndarray:
    return np.where(age < 10, 5 ** (np.clip(age, 0, 10) / 10), 0.05)


CHANGES: Changes = {
    "step x4": lambda age: np.where(age < 0, 1.0, 4.0),
    "ramp x2 in 100": lambda age: 2.0 ** (np.clip(age, 0, None) / 100),
    "growth x4 a step": lambda age: 4.0 ** np.clip(age + 1, 0, 100),
}


class Case(NamedTuple):
    """A detector at the settings its docstring gives figures for."""

    name: str
    reach: int
    holds: Callable[[Window, int], np.ndarray]
    changes: Changes
    falls: float = 0.0
    """By how much a step the series falls, as a share, when nothing is wrong."""
    around_zero: bool = True
    twice: bool = False
    """Whether it must hold at two readings running: the rule file's `for: 2`."""
    young: bool = False
    """Whether it answers before its window is full."""
    layers: int = 1
    """So many series are the layers of a model: it holds where it does in more than half of them."""


def _end_of_fall(age: np.ndarray) -> np.ndarray:
    return np.exp(-0.01 * np.minimum(age, 0))


def _crash(within: int, *, shared: bool) -> Case:
    young = {"young": 0.0} if shared else {}
    return Case(
        f"share(crash({within})) > 0.5" if shared else f"crash({within})",
        within,
        lambda x, step: detectors.crash(x, step, rise=3, fall=3, within=within, **young).holds,
        {"x5 in 10, then /100": _own_crash},
        around_zero=False,
        young=True,
        layers=10 if shared else 1,
    )


def _spike(n: int, by: float) -> Case:
    return Case(
        f"spike({n}, by={by:g})", n + 1, lambda x, step: detectors.spike(x, step, n, by).holds, CHANGES
    )


def _drift(n: int, by: float) -> Case:
    return Case(f"drift({n}, by={by:g})", n, lambda x, step: detectors.drift(x, step, n, by).holds, CHANGES)


CASES = (
    _crash(60, shared=False),
    _crash(60, shared=True),
    _crash(100, shared=False),
    _crash(100, shared=True),
    _spike(100, 2),
    _spike(128, 1.3),
    _spike(50, 2),
    _drift(200, 1.5),
    _drift(100, 2),
    Case(
        "plateau(200, by=0.2)",
        200,
        lambda x, step: detectors.plateau(x, step, 200, 0.2).holds,
        {"end of a fall": _end_of_fall},
        falls=0.4 / 200,
        around_zero=False,
    ),
    Case(
        "zscore(100) > 8, for: 2", 101, lambda x, step: windows.zscore(x, step, 100) > 8, CHANGES, twice=True
    ),
    Case(
        "zscore(100) > 8 of log, for: 2",
        101,
        lambda x, step: windows.zscore(x, step, 100, log=True) > 8,
        CHANGES,
        around_zero=False,
        twice=True,
    ),
)


def noise(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Noise e, shape (steps, layers)."""
    if kind == "t(3)":
        return random.standard_t(3, shape)
    e = random.normal(size=shape)
    phi = float(kind.removeprefix("AR(1)")) if kind.startswith("AR") else 0.0
    for step in range(1, shape[0]) if phi else ():
        e[step] = phi * e[step - 1] + (1 - phi**2) ** 0.5 * e[step]
    return e


def positive(kind: str, e: np.ndarray) -> np.ndarray:
    """The positive series of a noise."""
    return np.exp((0.5 if kind.startswith("log") else 0.1) * e)


def held(case: Case, values: np.ndarray, steps: range | None = None) -> np.ndarray:
    """Where the detector holds, shape (steps, models), from the step on at which its window is full."""
    x = Window(np.arange(len(values)), values, np.zeros(values.shape[1]))
    holds = np.array([case.holds(x, step) for step in steps or range(case.reach, len(values))])
    if case.twice:
        holds[1:] &= holds[:-1].copy()
        holds[0] = False
    return holds.reshape(len(holds), -1, case.layers).mean(axis=2) > 0.5


def false_alarms(case: Case, values: np.ndarray, steps: range | None = None) -> float:
    """Alarms per 1,000 steps, once the window is full or at the steps given."""
    holds = held(case, values, steps)
    return 1000 * np.count_nonzero(holds[1:] & ~holds[:-1]) / holds[1:].size


def _in_youth(case: Case, kind: str, readings: int, random: np.random.Generator) -> float:
    """The same before the window is full, from as many readings: of more series, then."""
    shape = (case.reach, readings // case.reach // case.layers * case.layers)
    return false_alarms(case, positive(kind, noise(kind, shape, random)), range(case.reach))


def delay(case: Case, change: Callable[[np.ndarray], np.ndarray], random: np.random.Generator) -> list[float]:
    """Median and 99th percentile of the step, counted from 1, at which a change is seen; inf after 250."""
    e = noise("normal", (case.reach + 250, 200), random)
    age = np.arange(len(e)) - case.reach
    holds = held(case, positive("normal", e) * change(age)[:, np.newaxis])
    seen = np.where(holds.any(axis=0), holds.argmax(axis=0) + 1.0, np.inf)
    return [float(np.sort(seen)[int(share * (len(seen) - 1))]) for share in (0.5, 0.99)]


def measure(case: Case, layers: int, steps: int) -> dict[str, dict[str, Any]]:
    """All figures of one detector, the same noise for each."""
    random = np.random.default_rng(7)
    fall = np.exp(-case.falls * np.arange(case.reach + steps))[:, np.newaxis]
    noises = {kind: noise(kind, (case.reach + steps, layers), random) for kind in NOISES}
    result: dict[str, dict[str, Any]] = {
        "positive": {kind: false_alarms(case, positive(kind, e) * fall) for kind, e in noises.items()}
    }
    if case.young:
        result["young"] = {kind: _in_youth(case, kind, layers * steps, random) for kind in NOISES}
    if case.around_zero:
        result["around 0"] = {kind: false_alarms(case, e) for kind, e in noises.items() if kind[0] != "l"}
    result["delay"] = {name: delay(case, change, random) for name, change in case.changes.items()}
    return result


def _alarm_table(figures: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table("detector", "series", *NOISES, title="False alarms per 1,000 steps")
    for name, kinds in figures.items():
        for series in ("positive", "young", "around 0"):
            if series in kinds:
                cells = (f"{kinds[series][n]:.3f}" if n in kinds[series] else "" for n in NOISES)
                table.add_row(name, series, *cells)
    return table


def _delay_table(figures: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table("detector", "change", "median", "99 %", title="Step at which a change is seen, noise 10 %")
    for name, kinds in figures.items():
        for change, (half, nearly_all) in kinds["delay"].items():
            table.add_row(name, change, f"{half:.0f}", f"{nearly_all:.0f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--layers", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    figures = {case.name: measure(case, options.layers, options.steps) for case in CASES}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    console = Console(width=110)
    console.print(_alarm_table(figures))
    console.print(_delay_table(figures))


if __name__ == "__main__":
    main()
