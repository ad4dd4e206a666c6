"""Replays of folders of runs, and of many variants of a rule at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepguard.cli import main
from stepguard.series.runfile import RunWriter
from stepguard.signals import Frame, Layer, Vector

LAYERS = [Layer("conv1", "Conv2d"), Layer("conv2", "Conv2d"), Layer("head", "Linear"), Layer("relu", "ReLU")]
RULES = """\
version: 1
rules:
  - {name: crash, when: 'share(act.std > 3) >= 0.5', severity: critical}
  - {name: high, when: loss > 2, keep: 5}
"""


def record(path: Path, grows: int, *, total: bool = True) -> None:
    """Record 40 steps in which so many layers grow by 0.1 a step; the loss is above 2 at steps 30 and 33."""
    writer = RunWriter(path)
    info: dict[str, Any] = {"seed": 0, "lr_scale": 1.0, "init": None, "clip": None, "dry_run": False}
    info |= {"rules": RULES, "restarts": {}} | ({"total_steps": None} if total else {})
    writer.begin_attempt(1, info)
    writer.layers(LAYERS)
    for step in range(40):
        values = np.array([1 + step / 10 if place < grows else 1.0 for place in range(4)], np.float32)
        loss = 3.0 if step in {30, 33} else 1.0
        writer.frame(Frame(step, {"loss": loss}, {"act.std": Vector(values, np.ones(4, np.bool_))}))
    writer.end_attempt("completed")
    writer.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("runs").mkdir()
    for grows in (1, 2, 4):
        record(Path(f"runs/run{grows}.sqlite"), grows)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert main(["replay", *arguments]) == code
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in lines]


def test_a_table_of_runs_by_values(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "runs", "--all", "--grid", "crash.share=0.25,0.5,0.8")
    assert lines[1] == "run attempt ended share=0.25 share=0.5 share=0.8"
    assert lines[3:6] == [
        "run1 1 completed step 21 - -",
        "run2 1 completed step 21 step 21 -",
        "run4 1 completed step 21 step 21 step 21",
    ]
    assert lines[7] == "fired in 3 of 3 2 of 3 1 of 3"


def test_the_product_of_several_grids_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(
        capsys, "runs", "--all", "--grid", "crash.share=0.25,0.5", "--grid", "crash.act.std=2.05,3.05,9"
    )
    assert lines[1] == "values run1 #1 run2 #1 run4 #1 fired in"
    assert lines[3:6] == [
        "share=0.25 act.std=2.05 step 11 step 11 step 11 3 of 3",
        "share=0.25 act.std=3.05 step 21 step 21 step 21 3 of 3",
        "share=0.25 act.std=9 - - - 0 of 3",
    ]
    assert len(lines) == 10


def test_fields_and_other_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "runs/run1.sqlite", "--grid", "high.keep=0,5")[3] == (
        "run1 1 completed step 30, 2 alerts step 30"
    )
    Path("own.yaml").write_text("version: 1\nrules: [{name: own, when: step > 9 and loss > 0}]\n")
    line = told(capsys, "runs/run1.sqlite", "--rules", "own.yaml", "--grid", "own.step=9,19")[3]
    assert line == "run1 1 completed step 10 step 20"


def test_without_all_the_newest_run_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("runs/newest.sqlite"), 3)
    lines = told(capsys, "runs", "--grid", "crash.share=0.7,0.8")
    assert lines[3] == "newest 1 completed step 21 -"
    assert len(lines) == 5


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "runs", "--all", "--grid", "crash.share=0.5", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["grid"] == ["share=0.5"]
    assert found["attempts"][1] == {
        **{"run": "run2", "attempt": 1, "outcome": "completed"},
        "firings": [{"first": 21, "alerts": 1}],
    }


def test_a_folder_of_runs_is_replayed_run_by_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(RULES)
    lines = told(capsys, "runs", "--all", "--rules", "own.yaml")
    assert [line for line in lines if line.startswith("runs/")] == [
        f"runs/run{grows}.sqlite" for grows in (1, 2, 4)
    ]
    assert sum(line.startswith("21 critical crash") for line in lines) == 2
    assert main(["replay", "runs", "--all", "--format", "json"]) == 1, "nothing was recorded as fired"
    assert [len(run["attempts"][0]["alerts"]) for run in json.loads(capsys.readouterr().out)] == [1, 2, 2]


@pytest.mark.parametrize("more", [[], ["--grid", "crash.share=0.5"]])
def test_an_unreadable_run_among_several_is_named_and_left_out(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/bad.sqlite").write_bytes(b"no database")
    Path("own.yaml").write_text(RULES)
    assert main(["replay", "runs", "--all", "--rules", "own.yaml", *more]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("stepguard replay: runs/bad.sqlite: ")
    assert "run4" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs", "--grid", "crsh.share=0.5"], "an unknown rule"),
        (["runs", "--grid", "crash.shar=0.5"], "did you mean 'share'?"),
        (["runs", "--grid", "crash.share=0.5,x"], "--grid crash.share=x (expected a number, got 'x')"),
        (["runs/none.sqlite", "--grid", "crash.share=0.5"], "runs/none.sqlite"),
        (["empty", "--all"], "expected a run file (*.sqlite) in this folder, got none"),
        (["runs/old.sqlite", "--grid", "crash.share=0.5"], "attempt 1 does not say 'total_steps'"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    record(Path("runs/old.sqlite"), 1, total=False)
    assert main(["replay", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_grid_agrees_with_a_replay_of_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    main(["replay", "runs/run2.sqlite", "--grid", "crash.act.std=1.55,2.55,4.05", "--format", "json"])
    firings = json.loads(capsys.readouterr().out)["attempts"][0]["firings"]
    for value, fired in zip(("1.55", "2.55", "4.05"), firings, strict=True):
        Path("own.yaml").write_text(RULES.replace("act.std > 3", f"act.std > {value}"))
        main(["replay", "runs/run2.sqlite", "--rules", "own.yaml", "--format", "json"])
        alerts = json.loads(capsys.readouterr().out)["attempts"][0]["alerts"]
        assert [fired["first"]] == [alert["step"] for alert in alerts if alert["rule"] == "crash"]


def test_it_does_not_import_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from stepguard.cli import main;"
        "sys.exit(main(['replay', 'runs', '--all', '--grid', 'crash.share=0.5']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
