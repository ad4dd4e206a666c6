from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from stepguard.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: stepguard {name}")
    assert " ".join((import_module(f"stepguard.cli.{name}").__doc__ or "?").split()) in text


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in lines)


@pytest.mark.parametrize("arguments", [[], ["shwo"], ["show"], ["show", "run", "--attempt", "x"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: stepguard" in capsys.readouterr().err


def test_it_starts_without_torch() -> None:
    script = (
        "import sys, runpy; sys.modules['torch'] = None; runpy.run_module('stepguard', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
