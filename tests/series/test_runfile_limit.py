"""The limit of a run file, and what small blocks and set-aside frames leave of a recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepguard.errors import StepguardWarning
from stepguard.series.runfile import Event, RunFile, RunWriter
from stepguard.series.set_aside import set_aside
from stepguard.signals import HIST_BINS, Frame, Vector

LAYERS = 50


def frame(step: int) -> Frame:
    random = np.random.default_rng(step)
    values = random.normal(size=(4, LAYERS)).astype(np.float32)
    vectors = {f"act.{k}": Vector(values[k], np.ones(LAYERS, np.bool_)) for k in range(4)}
    hist = random.integers(0, 4096, (LAYERS, HIST_BINS + 1), np.int32)
    return Frame(step, {"loss": float(step)}, vectors, hist)


def record(path: Path, steps: int, limit: int | None = None, every: int = 64) -> int:
    writer = RunWriter(path, limit)
    writer.begin_attempt(1, {})
    for step in range(steps):
        writer.frame(frame(step))
        writer.event("note", step, {})
        if step % every == 0:
            writer.flush()
    writer.close()
    return path.stat().st_size


def test_at_the_limit_old_frames_lose_their_layers_and_nothing_else(tmp_path: Path):
    whole = record(tmp_path / "whole.sqlite", 1024)
    limit = whole // 2
    assert record(tmp_path / "thin.sqlite", 1024, limit) < 1.2 * limit
    with RunFile(tmp_path / "whole.sqlite") as run:
        assert run.thinned(1) is None
    with RunFile(tmp_path / "thin.sqlite") as run:
        thin = run.thinned(1)
        read = list(run.frames(1))
        assert [each.scalars["loss"] for each in read] == list(range(1024))
        assert list(run.events(1)) == [Event("note", step, {}) for step in range(1024)]
    lost = [each.step for each in read if not each.vectors]
    assert thin is not None and thin.frames == len(lost) > 300 and thin.first <= min(lost)
    assert thin.last >= max(lost) and all(each.vectors and each.hist is not None for each in read[-64:])
    assert sum(step < 512 for step in lost) >= sum(step >= 512 for step in lost)


def test_the_limit_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STEPGUARD_RUN_BYTES", "100000")
    record(tmp_path / "a.sqlite", 512)
    with RunFile(tmp_path / "a.sqlite") as run:
        assert run.thinned(1) is not None
    monkeypatch.setenv("STEPGUARD_RUN_BYTES", "2 GB")
    with pytest.warns(StepguardWarning, match="expected a number of bytes, got '2 GB'"):
        RunWriter(tmp_path / "b.sqlite").close()


def test_frames_written_one_by_one_cost_as_little(tmp_path: Path):
    slow = record(tmp_path / "slow.sqlite", 256, every=1)
    assert slow < 1.1 * record(tmp_path / "fast.sqlite", 256, every=100)


def test_a_million_scalar_frames_would_cost_tens_of_bytes_each(tmp_path: Path):
    writer = RunWriter(tmp_path / "a.sqlite")
    writer.begin_attempt(1, {})
    random = np.random.default_rng(0)
    for step in range(4000):
        loss, seconds = float(np.float32(random.normal())), 0.05 + random.random() / 1000
        writer.frame(Frame(step, {"loss": loss, "step_time": seconds, "lr": 0.1}))
        if step % 500 == 0:
            writer.flush()
    writer.close()
    with RunFile(tmp_path / "a.sqlite") as run:
        assert sum(1 for _ in run.frames(1)) == 4000
    assert (tmp_path / "a.sqlite").stat().st_size < 40 * 4000


def test_frames_set_aside_are_whole_and_the_attempt_goes_on(tmp_path: Path):
    path = tmp_path / "a.sqlite"
    record(path, 300)
    for step in (250, 130):
        set_aside(path, 1, step)
    writer = RunWriter(path)
    writer.begin_attempt(1, {})
    writer.frame(frame(130))
    writer.close()
    with RunFile(path) as run:
        read = list(run.frames(1))
        assert [each.step for each in read] == list(range(131))
        assert [each.step for each in run.frames(-1)] == [*range(250, 300), *range(130, 250)]
        assert read[77].vectors["act.1"].values.tolist() == frame(77).vectors["act.1"].values.tolist()
