from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from stepguard.cli import main
from stepguard.recover.decision import Decision
from stepguard.rules.alert import Change, Evidence
from stepguard.series.runfile import RunWriter
from stepguard.signals import HIST_BINS, Frame, Layer, Vector

LAYERS = [Layer("conv1", "Conv2d"), Layer("conv2", "Conv2d"), Layer("head", "Linear")]


def frame(step: int) -> Frame:
    hist = np.zeros((3, HIST_BINS + 1), np.int32)
    hist[:, 0] = 100
    std = Vector(np.full(3, 1 + step / 10, np.float32), np.ones(3, np.bool_))
    return Frame(step, {"loss": 2 - step / 20, "metric.accuracy": step / 20}, {"act.std": std}, hist)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two attempts: the first ends by a restart at step 9, the second completes."""
    path = tmp_path / "run.sqlite"
    writer = RunWriter(path)
    evidence = Evidence("act.std", 0.1, (8, 9), (2.0, 0.1), {"rise": 3.0}, ("conv2", "head"), 3)
    fired = Change(9, "rising-crash", None, "firing", "critical", "it fell", evidence)
    decision = Decision(9, "restart", {"lr": 0.5}, "rising-crash", "conv2", 0, 1, 1, "it fell")
    for number, steps, outcome in ((1, 10, "restart: rising-crash"), (2, 20, "completed")):
        writer.begin_attempt(number, {"seed": 0, "lr_scale": 1.0 / number, "init": None, "clip": None})
        writer.layers(LAYERS)
        for step in range(steps):
            writer.frame(frame(step))
        if number == 1:
            writer.event("change", 9, json.loads(json.dumps(asdict(fired))))
            writer.event("decision", 9, json.loads(json.dumps(asdict(decision))))
        writer.end_attempt(outcome)
    writer.close()
    return path


HEAD = """\
attempt 1 began with your settings
  step 9: rising-crash fired at conv2 and head: it fell
  step 9: rising-crash: restart (learning rate x0.5)
  after 10 steps, loss 1.55: rule rising-crash asked for a restart
attempt 2 began with learning rate x0.5
  after 20 steps, loss 1.05: completed
next: it went well with learning rate x0.5: put that into the script

stepguard: 2 attempts, 30 steps
  attempt  began with          steps  ended                  loss  accuracy
        1  your settings          10  restart: rising-crash  1.55      0.45
        2  learning rate x0.5     20  completed              1.05      0.95

  attempt  alert         severity  first step  times  layers  what was done
        1  rising-crash  critical           9      1       2  restart

  run file  {path}

attempt 1  (others: --attempt 2)

rising-crash  ·········▆  from step 9, 2 layers
-> restart    ·········▲  step 9
              0        9

loss 1.55
"""


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["show", *map(str, arguments)]) == 0
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_begins_with_what_happened(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, run, "--attempt", 1).startswith(HEAD.format(path=run))


def test_each_layer_has_its_pictures_and_its_alerts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, run, "--attempt", 1)
    names = [line for line in text.splitlines() if line.startswith(("conv", "head"))]
    assert names == [
        "conv1 Conv2d",
        "conv2 Conv2d  rising-crash from step 9",
        "head Linear  rising-crash from step 9",
    ]
    assert text.count("abs(x), log of counts") == 3
    assert text.count("mean -  std 1.9") == 3


def test_the_last_attempt_of_the_newest_run_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, run.parent)
    assert "\nattempt 2  (others: --attempt 1)\n\nno alerts\n" in text
    assert "mean -  std 2.9" in text


def test_layers_are_chosen_by_a_glob(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, run, "--layers", "conv*")
    assert [line for line in text.splitlines() if line.endswith(("Conv2d", "Linear"))] == [
        "conv1 Conv2d",
        "conv2 Conv2d",
    ]


def test_many_layers_are_cut_down_to_those_with_alerts_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "many.sqlite"
    writer = RunWriter(path)
    writer.begin_attempt(1, {})
    writer.layers([Layer(f"layer{i}", "Linear") for i in range(40)])
    ones = Vector(np.ones(40, np.float32), np.ones(40, np.bool_))
    writer.frame(Frame(0, {}, {"act.std": ones}))
    writer.event("change", 0, asdict(Change(0, "dead-layer", "layer33", "firing", "warning")))
    writer.close()
    lines = shown(capsys, path).splitlines()
    names = [line.split()[0] for line in lines if line.startswith("layer")]
    assert names == [*(f"layer{i}" for i in range(11)), "layer33"]
    assert lines[-1] == "... and 28 more layers: --layers GLOB"


def test_frames_that_the_disk_was_too_slow_for_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slow.sqlite"
    writer = RunWriter(path)
    writer.begin_attempt(1, {})
    writer.frame(Frame(0, {"loss": 1.0}))
    writer.event("dropped", 1, {"frames": 1200, "last": 1201})
    writer.close()
    assert "\n1,200 frames missing from the recording\n" in shown(capsys, path)


def test_svg_and_html_hold_the_same_in_colour(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, html = run.with_suffix(".svg"), run.with_suffix(".html")
    assert shown(capsys, run, "--svg", svg, "--html", html) == f"written: {svg}\nwritten: {html}"
    for file in (svg, html):
        text = file.read_text("utf-8")
        assert "rising-crash" in text
        assert "#fde725" in text, "the brightest colour of the map"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--attempt", "7"], "no attempt 7: the run has 1 and 2"),
        (["--layers", "x*"], "no layer matches 'x*': the run has conv1, conv2 and head"),
        (["--svg", "/no/such/folder/x.svg"], "/no/such/folder/x.svg: cannot be written"),
    ],
)
def test_what_is_not_there_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["show", str(run), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"stepguard show: {told}")


@pytest.mark.parametrize("content", [None, b"", b"no database", b"SQLite format 3\x00 but broken"])
def test_an_unreadable_run_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "bad.sqlite"
    if content is not None:
        path.write_bytes(content)
    assert main(["show", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_in_a_terminal_it_goes_through_the_pager_from_the_top(run: Path) -> None:
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 80, 0, 0))
    settings = os.environ | {"PAGER": "head -n 3", "TERM": "xterm"}
    command = [sys.executable, "-m", "stepguard", "show", str(run)]
    shown = subprocess.run(command, stdin=terminal, stdout=terminal, env=settings, check=False, timeout=60)
    os.close(terminal)
    lines = os.read(main_end, 65536).decode().splitlines()
    os.close(main_end)
    assert shown.returncode == 0
    assert [line.rstrip() for line in lines] == HEAD.splitlines()[:3]
