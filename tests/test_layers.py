"""Imports go downwards only, and the pure rooms see neither torch nor rich nor a clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "stepguard"

RANKS = {
    **dict.fromkeys(("errors", "signals"), 0),
    **dict.fromkeys(("collect", "series"), 1),
    "rules": 2,
    "engine": 3,
    "recover": 4,
    "report": 5,
    "guard": 6,
    **dict.fromkeys(("integrations", "cli"), 7),
    **dict.fromkeys(("__main__", "__init__"), 8),
}
PURE = ("errors", "signals", "series", "rules", "engine")
FORBIDDEN = {"torch", "rich", "time", "datetime"}


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, wherever the import stands, also by its name as a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def violations(own: str, source: str) -> list[str]:
    """What a file of the room `own` imports and must not."""
    found: list[str] = []
    for module in imports(source):
        package, *rest = module.split(".")
        if own in PURE and package in FORBIDDEN:
            found.append(f"{own} imports {module}")
        if package != "stepguard" or not rest:
            continue
        # A name that is no room comes from the package itself, which stands above all.
        other = rest[0] if rest[0] in RANKS else "__init__"
        if other != own and (RANKS[other] >= RANKS[own] or (own in PURE and other == "collect")):
            found.append(f"{own} imports {module}")
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert violations(own, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("series", "from stepguard.rules.spec import RULE"),
        ("collect", "from stepguard.series import windows"),
        ("rules", "def f():\n    import stepguard.engine"),
        ("engine", "from stepguard.recover.decision import decide"),
        ("recover", "from stepguard.guard import watch"),
        ("report", "if TYPE_CHECKING:\n    from stepguard.cli import main"),
        ("series", "import torch.nn"),
        ("rules", "from rich.table import Table"),
        ("engine", "def f():\n    from time import monotonic"),
        ("series", "if TYPE_CHECKING:\n    from datetime import datetime"),
        ("series", "from importlib import import_module\nimport_module('torch')"),
        ("rules", "__import__('stepguard.guard')"),
        ("rules", "from stepguard import watch"),
        ("report", "from stepguard import guard"),
        ("engine", "from stepguard.collect.layers import is_activation"),
        ("signals", "from stepguard.errors import StepguardError"),
    ],
)
def test_a_planted_violation_is_found(own: str, source: str) -> None:
    assert violations(own, source)


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("rules", "from stepguard.series.windows import REACH"),
        ("rules", "from stepguard.rules.tree import Node\nimport numpy"),
        ("recover", "import torch\nfrom stepguard.collect.taps import Taps"),
        ("cli", "from stepguard.report.summary import Summary\nimport time"),
    ],
)
def test_what_is_allowed_is_no_violation(own: str, source: str) -> None:
    assert violations(own, source) == []


def test_the_pure_rooms_work_where_neither_torch_nor_rich_is_installed() -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in PURE
    ]
    assert len(modules) > 30
    code = f"import sys; sys.modules.update(torch=None, rich=None); import {', '.join(modules)}"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_room_has_its_rank() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert rooms - {"py.typed", "packs"} <= set(RANKS)
