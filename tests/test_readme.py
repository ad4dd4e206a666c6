"""The README is true: its Python runs, its rules load, its commands and packs exist, its picture is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import stepguard
from stepguard.cli import COMMANDS
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.packs import load_rules, pack_names
from stepguard.signals import METRIC, SIGNALS

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_python_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        line = TEXT[: TEXT.index(block)].count("\n")
        exec(compile("\n" * line + block, str(README), "exec"), names)
    assert isinstance(names["guard"], stepguard.Guard)
    assert len(list(tmp_path.glob("runs/*.sqlite"))) == 2


def test_yaml_blocks_are_rule_files(tmp_path: Path) -> None:
    assert blocks("yaml")
    for block in blocks("yaml"):
        file = tmp_path / "rules.yaml"
        file.write_text(block, encoding="utf-8")
        assert load_rules(file).rules


def test_shown_commands_exist() -> None:
    shown = set(re.findall(r"^stepguard (\w+)", "".join(blocks("sh")), re.MULTILINE))
    assert shown == set(COMMANDS)


def test_all_functions_signals_and_packs_are_named() -> None:
    section = TEXT[TEXT.index("## Rules") : TEXT.index("## What does not work")]
    words = set(re.findall(r"[a-z_]+", section))
    wanted = {part for name in SIGNALS for part in name.split(".")}
    assert wanted <= words
    assert METRIC in section
    assert set(FUNCTIONS) <= words
    assert all(f"`{name}`" in section for name in pack_names())


def test_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in target or (README.parent / target).is_file(), target
