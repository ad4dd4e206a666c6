"""What happens to a recording on disks that are slow or full, and in trainings that fail or are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepguard.errors import StepguardWarning
from stepguard.recover.recovery import Observation
from stepguard.report.recorder import Recorder
from stepguard.rules.alert import Change
from stepguard.series import runfile
from stepguard.signals import Frame, Layer, Vector


def frame(step: int) -> Frame:
    values = np.random.default_rng(step).normal(size=2).astype(np.float32)
    return Frame(step, {"loss": 1.0}, {"act.std": Vector(values, np.ones(2, np.bool_))})


def steps(path: Path, attempt: int = 1) -> list[int]:
    with runfile.RunFile(path) as run:
        return [read.step for read in run.frames(attempt)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def test_a_full_queue_drops_frames_says_so_once_and_never_waits(path: Path):
    writer = runfile.RunWriter(path)
    writer.begin_attempt(1, {})
    writer.flush()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # nobody else can write now
    writer.frame(frame(0))
    time.sleep(0.5)
    slowest = 0.0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(1, runfile.MAX_PENDING + 200):
            one, begin = frame(step), time.perf_counter()
            writer.frame(one)
            slowest = max(slowest, time.perf_counter() - begin)
        writer.event("change", 9, {})
    assert slowest < 0.1
    assert [warning.category for warning in said] == [StepguardWarning]
    assert "frames are missing" in str(said[0].message) and str(path) in str(said[0].message)
    other.execute("COMMIT")
    writer.flush()
    writer.frame(frame(777))
    writer.close()
    with runfile.RunFile(path) as run:
        recorded = len(list(run.frames(1)))
        lost = sum(event.data["frames"] for event in run.events(1, "dropped"))
        assert recorded + lost == runfile.MAX_PENDING + 201 and lost >= 198
        assert list(run.events(1, "change")) == [runfile.Event("change", 9, {})]
    assert steps(path)[-1] == 777


SCRIPT = """
import resource, sys, time, warnings
from pathlib import Path
import numpy as np
from stepguard.series import runfile
from stepguard.signals import Frame, Layer, Vector
what, path = sys.argv[1], Path(sys.argv[2])
warnings.simplefilter("always")
if what == "killed early":
    print("ready", flush=True)
    writers = [runfile.RunWriter(path / f"{k}.sqlite") for k in range(10**6)]
writer = runfile.RunWriter(path)
writer.begin_attempt(1, {})
writer.layers([Layer("a", "Linear")] * 50)
def frame(step):
    noise = np.random.default_rng(step).normal(size=50).astype(np.float32)
    return Frame(step, {"loss": float(step)}, {"act.std": Vector(noise, np.ones(50, bool))})
if what == "full disk":
    writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
for step in range(10**9 if what == "killed" else 1000):
    writer.frame(frame(step))
    if what == "killed":
        print(step, time.time(), flush=True)
        time.sleep(0.001)
    elif step % 100 == 0:
        writer.flush()
if what == "failing training":
    raise RuntimeError("the training failed")
writer.close()
print("went on to the end")
"""


def start(what: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what, str(path)], stdout=-1, stderr=-1, text=True, env=dict(os.environ)
    )


def test_a_full_disk_ends_the_recording_and_not_the_training(path: Path):
    out, said = start("full disk", path).communicate(timeout=60)
    assert out == "went on to the end\n"
    assert said.count("StepguardWarning") == 1 and "the recording ends here, the training goes on" in said
    assert steps(path) == list(range(len(steps(path))))


def test_a_training_that_fails_has_its_last_frames_recorded(path: Path):
    out, said = start("failing training", path).communicate(timeout=60)
    assert not out and said.rstrip().endswith("RuntimeError: the training failed")
    assert steps(path) == list(range(1000))


def test_a_step_is_on_disk_with_all_that_happened_at_it_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = runfile.RunWriter(path)
    writer.begin_attempt(1, {})
    event, looks = writer.event, list[list[int]]()

    def looked(*arguments: Any) -> None:
        writer.flush()
        looks.append(steps(path))
        event(*arguments)

    monkeypatch.setattr(writer, "event", looked)
    record, layers = Recorder(writer), (Layer("0", "Linear"), Layer("1", "ReLU"))
    for step in range(2):
        change = Change(step, "a", None, "pending", "warning")
        record(Observation(frame(step), layers, (change, change), None))
    writer.close()
    assert looks == [[], [], [0], [0]]
    with runfile.RunFile(path) as run:
        assert [each.step for each in run.events(1, "change")] == [0, 0, 1, 1]
    assert steps(path) == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_loses_the_last_second_at_most(path: Path, seed: int):
    process = start("killed", path)
    assert process.stdout is not None
    written = [process.stdout.readline()]
    time.sleep(float(np.random.default_rng(seed).uniform(0, 2.5)))
    killed = time.time()
    process.send_signal(signal.SIGKILL)
    written += process.communicate()[0].splitlines(keepends=True)
    ages = [killed - float(line.split()[1]) for line in written if line.endswith("\n")]
    found = steps(path)
    assert found == list(range(len(found))) and len(found) >= sum(age > 1 for age in ages)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    again = runfile.RunWriter(path)
    again.begin_attempt(2, {})
    again.frame(frame(0))
    again.close()
    assert steps(path) == found and steps(path, 2) == [0]


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_while_files_are_created_leaves_none_that_cannot_be_gone_on_with(tmp_path: Path, seed: int):
    process = start("killed early", tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(float(np.random.default_rng(seed).uniform(0.05, 0.2)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    files = list(tmp_path.glob("*.sqlite"))
    assert files
    for file in files:
        runfile.RunWriter(file).close()
        assert steps(file) == []
