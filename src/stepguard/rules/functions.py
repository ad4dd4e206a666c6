"""The one table of functions of the rule language, for the checker, the evaluator and the explanations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from stepguard.rules import values
from stepguard.rules.setting import Setting
from stepguard.rules.values import Array, Mask, Scalar, Value
from stepguard.series import detectors, windows
from stepguard.series.detectors import Detection
from stepguard.series.history import Window

Settings = Mapping[str, float]
"""What stands in a call beside its argument: `n`, `rise`, `by`."""


@dataclass(frozen=True)
class Function:
    """A function of the rule language: one argument, and settings."""

    name: str
    doc: str
    takes: Literal["number", "truth"]
    gives: Literal["number", "truth"]
    settings: tuple[Setting, ...] = ()
    positive: Literal["always", "as argument", "never"] = "never"
    """Whether the result is never below zero."""

    @property
    def signature(self) -> str:
        """How it is called, with defaults: `spike(x, n, by)`."""
        argument = "x" if self.takes == "number" else "condition"
        defaults = ["" if s.default is None else f"={s.default:g}" for s in self.settings]
        settings = [setting.name + default for setting, default in zip(self.settings, defaults, strict=True)]
        return f"{self.name}({', '.join([argument, *settings])})"


@dataclass(frozen=True, kw_only=True)
class Elementwise(Function):
    """Works on each number for itself."""

    run: Callable[[Value], Value]
    run_of_run: Callable[[Scalar], Scalar]
    """The same for one of the run."""


@dataclass(frozen=True, kw_only=True)
class OverSteps(Function):
    """Looks at the last steps: a window, the step now, settings, whether the argument is positive."""

    run: Callable[[Window, int, Settings, bool], Array]

    def reach(self, settings: Settings) -> int:
        """Give the steps that the window must cover."""
        return _reach(self.name, settings)


@dataclass(frozen=True, kw_only=True)
class FirstSteps(OverSteps):
    """Looks at the first steps of all, which are kept for good."""


@dataclass(frozen=True, kw_only=True)
class Detector(Function):
    """Looks at the last steps, tells whether something happened, and measures it."""

    run: Callable[[Window, int, Settings], Detection]
    measures: tuple[str, ...]

    def reach(self, settings: Settings) -> int:
        """Give the steps that the window must cover."""
        return _reach(self.name, settings)


@dataclass(frozen=True, kw_only=True)
class OverLayers(Function):
    """Folds all layers that a rule looks at into one value for the run."""

    run: Callable[[Value, Mask], Scalar]
    joint: bool = True
    """Whether one layer alone does not make it hold."""


@dataclass(frozen=True, kw_only=True)
class Pick(Function):
    """Takes the number of one layer."""

    index: Callable[[Value, Mask], int | None]


def _reach(name: str, settings: Settings) -> int:
    span = next(settings[key] for key in ("within", "of", "n") if key in settings)
    return windows.REACH[name](int(span))


def _steps(least: int, doc: str = "how many steps") -> Setting:
    return Setting("n", doc, least, whole=True)


def _over(
    name: str,
    run: Callable[[Window, int, int], Array],
    doc: str,
    least: int = 1,
    positive: Literal["always", "as argument", "never"] = "never",
) -> OverSteps:
    return OverSteps(
        name,
        doc,
        takes="number",
        gives="number",
        settings=(_steps(least),),
        positive=positive,
        run=lambda window, step, settings, _: run(window, step, int(settings["n"])),
    )


def _zscore(window: Window, step: int, settings: Settings, positive: bool) -> Array:
    return windows.zscore(window, step, int(settings["n"]), log=positive)


def _held(window: Window, step: int, settings: Settings, positive: bool) -> Array:
    return windows.held(window, step, int(settings["n"]), int(settings["of"]))


def _crash(window: Window, step: int, s: Settings) -> Detection:
    within, young = int(s["within"]), s["young"]
    return detectors.crash(window, step, rise=s["rise"], fall=s["fall"], within=within, young=young)


def _detector(
    name: str, run: Callable[[Window, int, int, float], Detection], doc: str, by: Setting, *measures: str
) -> Detector:
    return Detector(
        name,
        doc,
        takes="number",
        gives="truth",
        settings=(_steps(8), by),
        run=lambda window, step, s: run(window, step, int(s["n"]), s["by"]),
        measures=measures,
    )


_WINDOWS = (
    _over("prev", windows.prev, "the reading n steps ago", positive="as argument"),
    _over("delta", windows.delta, "now minus the reading n steps ago"),
    _over("growth", windows.growth, "now over the reading n steps ago, a factor", positive="always"),
    _over("mean", windows.mean, "mean of the last n steps", positive="as argument"),
    _over("median", windows.median, "median of the last n steps", positive="as argument"),
    _over("min", windows.min, "smallest of the last n steps", positive="as argument"),
    _over("max", windows.max, "largest of the last n steps", positive="as argument"),
    _over("std", windows.std, "standard deviation of the last n steps", 2, "always"),
    _over("mad", windows.mad, "median absolute deviation of the last n steps", 2, "always"),
    _over("ewma", windows.ewma, "mean that forgets, with alpha = 2 / (n + 1)", positive="as argument"),
    _over("slope", windows.slope, "change a step over the last n steps (Theil-Sen)", 2),
    _over("trend", windows.trend, "how surely it rises over the last n steps (Mann-Kendall z)", 3),
    FirstSteps(
        "early",
        "median of the first n steps of all, once they are over",
        takes="number",
        gives="number",
        settings=(_steps(1),),
        positive="as argument",
        run=lambda window, step, settings, _: windows.early(window, step, int(settings["n"])),
    ),
    OverSteps(
        "zscore",
        "how far now lies from the n steps before, in robust standard deviations (of the log if positive)",
        takes="number",
        gives="number",
        settings=(_steps(8),),
        run=_zscore,
    ),
    OverSteps(
        "held",
        "true in at least n of the last `of` steps",
        takes="truth",
        gives="truth",
        settings=(
            Setting("n", "how many steps it held at least", 1, whole=True, at_most="of"),
            Setting("of", "how many steps to look back", 1, whole=True),
        ),
        run=_held,
    ),
)

_DETECTORS = (
    Detector(
        "crash",
        "rose from a trough to a peak and fell again, within so many steps",
        takes="number",
        gives="truth",
        settings=(
            Setting("rise", "from trough to peak, a factor", 1, above=True, default=3),
            Setting("fall", "from peak to now, a factor", 1, above=True, default=3),
            Setting("within", "how many steps to look back", 2, whole=True, default=60),
            Setting(
                "young",
                "spreads of its noise that both must be before the window is full; 0: the factors decide",
                0,
                default=9,
                joint=0,
            ),
        ),
        run=_crash,
        measures=("rise", "fall", "peak"),
    ),
    _detector(
        "spike",
        detectors.spike,
        "far above the n steps before",
        Setting("by", "how far above, a factor", 1, above=True),
        "ratio",
        "baseline",
    ),
    _detector(
        "plateau",
        detectors.plateau,
        "has not fallen over the last n steps",
        Setting("by", "how much it should fall, as a share of its level", 0, above=True),
        "fall",
        "level",
    ),
    _detector(
        "drift",
        detectors.drift,
        "moved up from where it was and stayed there",
        Setting("by", "how far up, a factor", 1, above=True),
        "ratio",
        "baseline",
    ),
)

_LAYERS = (
    OverLayers("any", "at one layer or more", "truth", "truth", run=values.any_layer, joint=False),
    OverLayers("all", "at every layer", "truth", "truth", run=values.all_layers),
    OverLayers("share", "share of the layers, 0..1", "truth", "number", positive="always", run=values.share),
    OverLayers("count", "number of layers", "truth", "number", positive="always", run=values.count),
    Pick("worst", "largest of all layers", "number", "number", (), "as argument", index=values.worst_index),
    Pick("first", "at the first layer", "number", "number", (), "as argument", index=values.first_index),
    Pick("last", "at the last layer", "number", "number", (), "as argument", index=values.last_index),
)

_ELEMENTS = (
    Elementwise(
        "nonfinite",
        "NaN or infinite",
        "number",
        "truth",
        run=values.nonfinite,
        run_of_run=values.nonfinite_of_run,
    ),
    Elementwise(
        "sure",
        "whether it is known to hold: false where it is unknown, as the loss of a run that tells none",
        "truth",
        "truth",
        run=values.sure,
        run_of_run=values.sure_of_run,
    ),
    Elementwise(
        "abs",
        "without its sign",
        "number",
        "number",
        positive="always",
        run=values.absolute,
        run_of_run=values.absolute_of_run,
    ),
)

FUNCTIONS: Mapping[str, Function] = {
    function.name: function for function in (*_WINDOWS, *_DETECTORS, *_LAYERS, *_ELEMENTS)
}
"""Every function of the language, by name."""

LONGEST = {"run": 100_000, "layer": 2_000}
"""Steps that a window may cover, for a signal of the run and for one per layer: it bounds the memory."""
