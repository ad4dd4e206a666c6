from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepguard.cli import check, test

GOOD = "version: 1\nrules: [{name: r, when: loss > 5}]\n"
FAULTY = "version: 1\nrules: [{name: r, when: los > 5, for: 0}]\n"
LINTY = "version: 1\nrules: [{name: 'r', when: 'share(act.std > 3) > 2', active: ..5%}]\n"
TESTS = "rules: good.yaml\ntests: [{name: a, series: {loss: 1 9}, alerts: [{rule: r, step: 1}]}]\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {"good": GOOD, "faulty": FAULTY, "linty": LINTY, "tests": TESTS}.items():
        Path(f"{name}.yaml").write_text(text)
    Path("wrong.yaml").write_text(TESTS.replace("step: 1", "step: 0"))
    return tmp_path


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    check.add(subparsers)
    test.add(subparsers)
    args = parser.parse_args(arguments)
    return args.run(args)


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["check", "good.yaml"], 0, "1 file, 1 rule: fine\n"),
        (["check", "default"], 0, "1 file, "),
        (
            ["check", "faulty.yaml"],
            1,
            "faulty.yaml:2:25: rule 'r': an unknown signal (expected a signal, got 'los'",
        ),
        (
            ["check", "faulty.yaml"],
            1,
            "faulty.yaml:2:39: rule 'r': for (expected a whole number of 1 or more",
        ),
        (["check", "faulty.yaml", "good.yaml"], 1, "2 files, 1 rule: 2 errors\n"),
        (["check", "faulty.yaml", "faulty.yaml"], 1, ": 2 errors\n"),
        (["check", "linty.yaml"], 1, "1 file, 1 rule: 1 warning, 1 note\n"),
        (["check", "linty.yaml"], 1, "is never true: share(act.std > 3) lies from 0 to 1 [warning]\n"),
        (
            ["check", "defualt"],
            2,
            "no such file (expected a file or a pack, got 'defualt'; did you mean 'default'?)",
        ),
        (["check", "nothing.yaml", "faulty.yaml"], 2, "an unknown signal"),
        (["test", "tests.yaml"], 0, "1 test: all passed\n"),
        (["test", "tests.yaml", "wrong.yaml"], 1, "2 tests: 1 failed\n"),
        (
            ["test", "wrong.yaml"],
            1,
            "  r: expected at step 0, fired at step 1\n    ▁█  loss: 1 to 9, steps 0 to 1\n",
        ),
        (["test", "nothing.yaml"], 2, "nothing.yaml:1:1: no such file"),
        (["test", "faulty.yaml", "tests.yaml"], 2, "1 test: all passed\n"),
    ],
)
def test_exit_codes_and_output(
    arguments: list[str], code: int, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == code
    assert output in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("check", "faulty.yaml", "linty.yaml", "--format", "json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["files"], report["rules"]) == (2, 1)
    assert [problem["level"] for problem in report["problems"]] == ["error", "error", "warning", "note"]
    first = report["problems"][0]
    assert (first["file"], first["line"], first["column"], first["rule"]) == ("faulty.yaml", 2, 25, "r")


def test_github(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a,b%.yaml").write_text(FAULTY)
    assert command("check", "a,b%.yaml", "linty.yaml", "--format", "github") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "::error file=a%2Cb%25.yaml,line=2,col=25,title=rule r::an unknown signal (expected"
    )
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::warning", "::notice"]


def test_neither_command_imports_torch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from stepguard.cli import main;"
        "sys.exit(main(['check', 'good.yaml']) or main(['test', 'tests.yaml']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
