"""Found by every python below `stepguard run --auto` as it starts: has the first training in it guarded.

Python imports a module of this name on its own; the one that it would have found without this is run as well.
Nothing happens before the script imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = str(Path(__file__).parent)


class _AfterTorch(MetaPathFinder):
    """Lets torch be imported as ever, and installs the guard afterwards."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of torch, whose loader does a little more."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_guard(module: ModuleType) -> None:
            load(module)
            _install()

        spec.loader.exec_module = load_and_guard
        return spec


def _install() -> None:
    """A python in which stepguard is not installed, or does not work, trains without a guard."""
    try:
        from stepguard.integrations.automatic import Automatic  # noqa: PLC0415

        Automatic()
    except Exception as fault:
        sys.stderr.write(
            f"stepguard run --auto: no guard in this process ({type(fault).__name__}: {fault})\n"
        )


def _run_hidden() -> None:
    """Run the `sitecustomize` that this one hides."""
    others = [entry for entry in sys.path if entry != _HERE]
    sys.path[:] = others
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if _HERE in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    sys.meta_path.insert(0, _AfterTorch())
    _run_hidden()
