"""What `watch` is given, held against what it can use before the training is touched. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from torch import nn

from stepguard.errors import StepguardError


class _Expected(NamedTuple):
    fits: Callable[[Any], bool]
    what: str


def _offers(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(hasattr(value, name) for name in names)


def _several(of: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """One, or a list of them that is not empty."""

    def fits(value: Any) -> bool:
        if isinstance(value, of):
            return bool(str(value))
        return isinstance(value, Sequence) and bool(value) and all(isinstance(each, of) for each in value)

    return fits


def _steps(value: Any) -> bool:
    return isinstance(value, Integral) and value is not True and int(value) >= 1


def _functions(value: Any) -> bool:
    """An iterator is left to be used once; what it gives is looked at then."""
    return isinstance(value, Iterable) and (not isinstance(value, Sequence) or all(map(callable, value)))


_EXPECTED = {
    "model": _Expected(lambda value: isinstance(value, nn.Module), "a torch.nn.Module"),
    "optimizer": _Expected(_offers("param_groups", "register_step_pre_hook"), "a torch optimizer"),
    "rules": _Expected(_several((str, Path)), "a pack's name, a rule file, or a list of them"),
    "total_steps": _Expected(_steps, "a whole number of steps from 1, or None"),
    "run": _Expected(lambda value: isinstance(value, str | Path), "a folder, or None"),
    "console": _Expected(
        lambda value: value == "auto" or isinstance(value, Console), '"auto", a rich Console, or None'
    ),
    "layers": _Expected(_several(str), "a glob over layers, a list of them, or None"),
    "scheduler": _Expected(_offers("step", "state_dict"), "a learning-rate scheduler, or None"),
    "scaler": _Expected(_offers("step", "update", "get_scale"), "a GradScaler, or None"),
    "subscribers": _Expected(_functions, "functions"),
    "dry_run": _Expected(lambda value: isinstance(value, bool), "True or False"),
    "on_error": _Expected(lambda value: value in ("warn", "raise"), '"warn" or "raise"'),
}
_OPTIONAL = ("total_steps", "run", "console", "layers", "scheduler", "scaler")


def check_arguments(**given: Any) -> None:
    """Hold each argument of `watch` against what it can be.

    Raises:
        StepguardError: one cannot be used; says which, what was expected and what came.
    """
    for name, value in given.items():
        expected = _EXPECTED[name]
        if not (value is None and name in _OPTIONAL) and not expected.fits(value):
            got = repr(value) if isinstance(value, str | int | float | None | list) else type(value).__name__
            raise StepguardError(f"{name}: expected {expected.what}, got {got}")
