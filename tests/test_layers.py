"""Imports go downwards only, and the pure rooms see neither torch nor rich nor a clock."""

from __future__ import annotations

import ast
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
    """Every module that a source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The room of a module of stepguard: its first part behind the package."""
    return [*module.split("."), "__init__"][1]


def violations(own: str, source: str) -> list[str]:
    """What a file of the room `own` imports and must not."""
    found: list[str] = []
    for module in imports(source):
        if own in PURE and module.split(".")[0] in FORBIDDEN:
            found.append(f"{own} imports {module}")
        if not module.startswith("stepguard.") or room(module) not in RANKS:
            continue
        other = room(module)
        if other != own and RANKS[other] >= RANKS[own]:
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
    ],
)
def test_a_planted_violation_is_found(own: str, source: str) -> None:
    assert violations(own, source)


def test_every_room_has_its_rank() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert rooms - {"py.typed", "packs"} <= set(RANKS)
