from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepguard.errors import RunFileError
from stepguard.series.runfile import AttemptRecord, Event, RunFile, RunWriter, find_run
from stepguard.signals import HIST_BINS, Frame, Layer, Vector

LAYERS = (Layer("conv1", "Conv2d"), Layer("head.0", "Linear"))


def frame(step: int, *names: str) -> Frame:
    """A frame of random bits: every kind of float, NaN with any payload."""
    random = np.random.default_rng(step)
    vectors = {
        name: Vector(
            random.integers(0, 2**32, 2, np.uint32, endpoint=False).view(np.float32), random.random(2) < 0.5
        )
        for name in ("act.std", "grad.norm", *names)
    }
    hist = random.integers(0, 4096, (2, HIST_BINS + 1), np.int32) if step % 2 else None
    return Frame(step, {"loss": float(random.normal()), "metric.x": float("nan")}, vectors, hist)


def plain(given: Frame) -> object:
    """All of a frame's bits, to be compared."""
    vectors = {name: (v.values.tobytes(), v.known.tobytes()) for name, v in given.vectors.items()}
    scalars = {name: np.float64(value).tobytes() for name, value in given.scalars.items()}
    hist = None if given.hist is None else (given.hist.shape, given.hist.dtype, given.hist.tobytes())
    return given.step, scalars, vectors, hist


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a run?#1.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[RunWriter]:
    writer = RunWriter(path)
    writer.begin_attempt(1, {"seed": 0})
    writer.layers(LAYERS)
    yield writer
    writer.close()


def steps(path: Path, attempt: int = 1) -> list[int]:
    with RunFile(path) as run:
        return [read.step for read in run.frames(attempt)]


def test_what_was_written_is_read_back(path: Path, writer: RunWriter):
    written = [frame(step) for step in range(600)]
    for one in written:
        writer.frame(one)
        if one.step % 100 == 0:
            writer.flush()
    writer.event("change", 7, {"rule": "loss-spike", "layer": None, "values": [1.5, float("inf")], "ü": "ß"})
    writer.event("note", 8, {})
    writer.end_attempt("finished")
    writer.close()
    with RunFile(path) as run:
        assert run.meta.format == 3 and run.meta.stepguard
        assert run.attempts() == [AttemptRecord(1, {"seed": 0}, LAYERS, "finished")]
        assert [plain(read) for read in run.frames(1)] == [plain(one) for one in written]
        change = Event(
            "change", 7, {"rule": "loss-spike", "layer": None, "values": [1.5, float("inf")], "ü": "ß"}
        )
        assert list(run.events(1)) == [change, Event("note", 8, {})]
        assert list(run.events(1, "note")) == [Event("note", 8, {})]
        assert not list(run.frames(2)) and not list(run.events(2))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_changes_after_it_was_handed_over_is_not_recorded(path: Path, writer: RunWriter):
    one, info = frame(1), {"rules": ["a"]}
    before = plain(one)
    writer.begin_attempt(2, info)
    writer.frame(one)
    one.scalars["loss"] = 5.0
    one.vectors.clear()
    info["rules"].append("b")
    writer.flush()
    with RunFile(path) as run:
        assert [plain(read) for read in run.frames(2)] == [before]
        assert run.attempts()[1].info == {"rules": ["a"]}


def test_a_reader_sees_what_comes_while_it_has_the_file_open(path: Path, writer: RunWriter):
    writer.frame(frame(0))
    writer.flush()
    with RunFile(path) as run:
        assert [read.step for read in run.frames(1)] == [0]
        assert run.attempts()[0].outcome is None
        writer.frame(frame(1, "weight.norm"))  # a signal without a number till now
        writer.flush()
        assert [plain(read) for read in run.frames(1)] == [plain(frame(0)), plain(frame(1, "weight.norm"))]


def test_a_slow_reader_goes_on_while_frames_come(path: Path, writer: RunWriter):
    for step in range(300):
        writer.frame(frame(step))
        if step % 100 == 0:
            writer.flush()
    writer.flush()
    with RunFile(path) as run:
        reading = run.frames(1)
        seen = [next(reading).step]
        writer.frame(frame(300, "weight.norm"))
        writer.close()
        assert seen + [read.step for read in reading] == list(range(301))


def test_it_is_on_disk_within_half_a_second(path: Path, writer: RunWriter):
    writer.flush()
    writer.frame(frame(1))
    time.sleep(0.5)
    assert steps(path) == [1]


def test_another_attempt_goes_on_in_the_same_file(path: Path, writer: RunWriter):
    writer.frame(frame(5))
    writer.end_attempt("restart by rising-crash")
    writer.close()
    second = RunWriter(path)
    second.begin_attempt(2, {"seed": 1})
    second.layers(LAYERS[:1])
    second.frame(frame(0, "weight.norm"))
    second.frame(frame(3))
    second.close()
    with RunFile(path) as run:
        assert run.attempts() == [
            AttemptRecord(1, {"seed": 0}, LAYERS, "restart by rising-crash"),
            AttemptRecord(2, {"seed": 1}, LAYERS[:1], None),
        ]
        assert [plain(read) for read in run.frames(2)] == [plain(frame(0, "weight.norm")), plain(frame(3))]
    assert steps(path, 1) == [5]


def test_frames_keep_their_order_through_a_rollback(path: Path, writer: RunWriter):
    for step in (0, 1, 2, 1, 2, 3):
        writer.frame(frame(step))
    writer.close()
    assert steps(path) == [0, 1, 2, 1, 2, 3]


def test_closing_twice_does_nothing_and_writing_after_it_is_told(path: Path, writer: RunWriter):
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.frame(frame(1))


# files that are something else


def sqlite_of(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def test_unfit_files_are_told_apart(path: Path, tmp_path: Path):
    text, foreign, folder = tmp_path / "notes.txt", tmp_path / "foreign.sqlite", tmp_path / "folder"
    text.write_text("step,loss\n" * 1000)
    folder.mkdir()
    sqlite_of(foreign, "CREATE TABLE t (x)")
    RunWriter(path).close()
    sqlite_of(path, "PRAGMA user_version = 4")
    for unfit, got, way_out in (
        (tmp_path / "no.sqlite", "no file", "name a file that a guarded run left"),
        (folder, "a folder", "name a file that a guarded run left"),
        (text, "a file that is not SQLite", "name a file that a guarded run left"),
        (foreign, "an SQLite file of something else", "name a file that a guarded run left"),
        (path, "format 4, this version reads format 3", "pip install -U stepguard"),
    ):
        with pytest.raises(RunFileError) as told:
            RunFile(unfit)
        assert str(told.value) == f"{unfit}: expected a run file of stepguard, got {got} ({way_out})"


def test_a_writer_leaves_unfit_files_alone(tmp_path: Path):
    text, foreign = tmp_path / "notes.txt", tmp_path / "foreign.sqlite"
    text.write_text("step,loss\n" * 1000)
    sqlite_of(foreign, "CREATE TABLE t (x)")
    for unfit in (text, foreign):
        before = unfit.read_bytes()
        with pytest.raises(RunFileError, match=r"expected a run file of stepguard, got a"):
            RunWriter(unfit)
        assert unfit.read_bytes() == before
    with pytest.raises(RunFileError, match="check that its folder exists and can be written"):
        RunWriter(tmp_path / "missing" / "run.sqlite")


def test_an_empty_file_becomes_a_run_file(path: Path):
    path.touch()
    RunWriter(path).close()
    assert steps(path) == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE blocks SET data = x'00'",
        "UPDATE blocks SET data = zeroblob(100)",
        "DELETE FROM names",
        "DROP TABLE blocks",
    ],
)
def test_damage_is_told(path: Path, writer: RunWriter, damage: str):
    writer.frame(frame(3))
    writer.close()
    sqlite_of(path, damage)
    with (
        RunFile(path) as run,
        pytest.raises(RunFileError, match="expected a whole run file, got a damaged one"),
    ):
        list(run.frames(1))


def test_find_run(tmp_path: Path):
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    for age, run in enumerate((two, one)):
        RunWriter(run).close()
        os.utime(run, (1000 - age, 1000 - age))
    (tmp_path / "newer.txt").touch()
    assert find_run(one) == one
    assert find_run(tmp_path) == two
    assert find_run(str(tmp_path)) == two
    live = RunWriter(one)
    os.utime(one, (999, 999))
    assert find_run(tmp_path) == one  # its log is new
    live.close()
    (tmp_path / "empty").mkdir()
    for path, got in ((tmp_path / "empty", "in this folder, got none"), (tmp_path / "x", "got no such file")):
        with pytest.raises(RunFileError, match=got):
            find_run(path)


def test_a_thousand_layers_cost_the_training_little(path: Path, writer: RunWriter):
    values = Vector(np.ones(1000, np.float32), np.ones(1000, np.bool_))
    big = Frame(0, {"loss": 1.0}, {f"signal{k}": values for k in range(22)}, np.ones((1000, 51), np.int32))
    times = []
    for _ in range(100):
        begin = time.perf_counter()
        writer.frame(big)
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 1e-4
