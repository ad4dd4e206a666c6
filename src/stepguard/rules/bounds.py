"""Which functions have a bound: what tells for next to nothing that they do not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stepguard.rules.functions import Settings
from stepguard.series import running
from stepguard.series.running import LayerBound, RunBound

RUN_BOUNDS: Mapping[str, Callable[[Settings], RunBound]] = {
    "held": lambda s: running.HeldBound(int(s["n"]), int(s["of"])),
    "spike": lambda s: running.SpikeBound(int(s["n"]), s["by"]),
    "plateau": lambda s: running.PlateauBound(int(s["n"]), s["by"]),
    "drift": lambda s: running.DriftBound(int(s["n"])),
}
"""By function of numbers of the run: what tells at once that it cannot hold."""

LAYER_BOUNDS: Mapping[str, Callable[[Settings, int], LayerBound]] = {
    "crash": lambda s, layers: running.CrashBound(s["fall"], int(s["within"]), layers),
}
"""The same for numbers per layer."""
