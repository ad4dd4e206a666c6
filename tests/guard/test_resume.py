"""A run that was broken off goes on: with what fits, from the newest snapshot that is whole."""

from __future__ import annotations

import io
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import stepguard
from stepguard.errors import StepguardError, StepguardWarning
from stepguard.recover import certifying, shelf, snapshot
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.report.recorded import happenings
from stepguard.report.replay import replay
from stepguard.series.runfile import RunFile

QUIET = certifying.LEAST
RULES = """
- {name: high, when: loss > 1e9, action: [{rollback: {lr: 0.5}}, halt]}
- {name: warm, when: "mean(loss, 15) > 0.9", for: 5}
- {name: grown, when: "growth(act.std, 12) > 1.02", for: 3, keep: 4}
"""
STEPS = 3 * QUIET


class Broken(Exception):
    """What ends a training that should be resumed."""


def train(
    guarded: Any, guard: stepguard.Guard, steps: int = STEPS, until: int | None = None, pause: bool = False
) -> Any:
    """Train from where the guard says to the end, or until it is broken off."""
    with guard:
        guarded.now = guard.resume()
        for step in range(guarded.now, steps):
            if step == until:
                raise Broken
            guarded.run(1, guard.step)
            if pause:
                guard._snapshots.keeper.writer.finish()  # so that what should be on disk is there
    return guarded


@pytest.fixture
def begin(training, watched, rules, tmp_path: Path) -> Callable[..., Any]:
    file = rules(RULES)

    def make(guarded: Any | None = None, **options: Any) -> Any:
        guarded = guarded or training()
        session = watched(guarded, **{"rules": file, "run": tmp_path / "runs", **options})
        return guarded, session

    return make


def broken(begin: Callable[..., Any], until: int = STEPS - 10, **options: Any) -> Path:
    guarded, session = begin(**options)
    with pytest.raises(Broken):
        train(guarded, session.guard, until=until, pause=True)
    return session.guard.run_path


def test_it_ends_as_one_that_was_never_broken_off_and_its_alerts_are_the_same(begin, tmp_path: Path) -> None:
    guarded, whole = begin(run=tmp_path / "whole")
    expected = train(guarded, whole.guard).state()
    path = broken(begin)
    guarded, session = begin()
    found = train(guarded, session.guard).state()
    assert found == expected
    assert session.guard.run_path == path
    assert session.seen[0].frame.step == 1 + QUIET
    assert len(list(path.parent.glob("*.sqlite"))) == 1, "the file that was begun for the new run is gone"
    with RunFile(path) as run:
        (record,) = run.attempts()
        assert record.outcome == "completed"
        assert [frame.step for frame in run.frames(1)] == list(range(STEPS))
        assert [frame.step for frame in run.frames(-1)] == list(range(1 + QUIET, STEPS - 10))
        told = {"step": 1 + QUIET, "ended": "error: Broken: ", "reached": STEPS - 11}
        assert [event.data for event in run.events(1, "resumed")] == [told]
        live = happenings((event.kind, event.data) for event in run.events(1))
        again = replay(run, record)
        assert repr(again.changes) == repr(live.changes)
        fired = [(change.step, change.rule) for change in live.changes]
        resumed = list(run.frames(1))
    with RunFile(next((tmp_path / "whole").glob("*.sqlite"))) as run:
        frames = list(run.frames(1))
        assert len(frames) == len(resumed)
        for frame, other in zip(frames, resumed, strict=True):
            assert frame.vectors.keys() == other.vectors.keys()
            for name, vector in frame.vectors.items():
                np.testing.assert_array_equal(other.vectors[name].values, vector.values, name)
                np.testing.assert_array_equal(other.vectors[name].known, vector.known, name)
        assert [(change.step, change.rule) for change in replay(run, run.attempts()[0]).changes] == fired


@pytest.mark.parametrize("total_steps", [None, STEPS])
def test_a_pace_is_kept_after_a_resume_as_before_it(begin, tmp_path: Path, total_steps: int | None) -> None:
    def paced(**options: Any) -> Any:
        token = CURRENT.set(Attempt(pace=0.01))
        try:
            return begin(total_steps=total_steps, **options)
        finally:
            CURRENT.reset(token)

    guarded, whole = paced(run=tmp_path / "whole")
    expected = train(guarded, whole.guard).state()
    guarded, session = paced()
    with pytest.raises(Broken):
        train(guarded, session.guard, until=STEPS - 10, pause=True)
    guarded, session = begin(total_steps=total_steps)
    assert train(guarded, session.guard).state() == expected
    assert session.seen[0].frame.step > 1, "it was gone on with"


def test_steps_on_standardised_inputs_go_on_after_a_resume(begin, tmp_path: Path) -> None:
    def raw(attempt: Attempt | None = None, **options: Any) -> Any:
        token = CURRENT.set(attempt)
        try:
            guarded, session = begin(**options)
        finally:
            CURRENT.reset(token)
        units = 10.0 ** torch.arange(-3, 5)
        guarded.batches = [(x * units + units, y) for x, y in guarded.batches]
        return guarded, session

    guarded, whole = raw(Attempt(init="standardise"), run=tmp_path / "whole")
    expected = train(guarded, whole.guard).state()
    guarded, session = raw(Attempt(init="standardise"))
    with pytest.raises(Broken):
        train(guarded, session.guard, until=STEPS - 10, pause=True)
    guarded, session = raw()
    assert train(guarded, session.guard).state() == expected
    assert session.seen[0].frame.step > 1, "it was gone on with"


def test_it_says_where_it_goes_on_and_whose_learning_rate_that_is(begin) -> None:
    broken(begin)
    out = io.StringIO()
    guarded, session = begin(console=Console(file=out, width=200))
    train(guarded, session.guard)
    (told,) = [line for line in out.getvalue().splitlines() if "goes on at step" in line]
    assert f"goes on at step {1 + QUIET};" in told
    assert "learning rate" in told and "those of the snapshot, whatever the script says" in told


def test_without_a_run_to_go_on_with_it_begins_at_0(begin, training, watched, rules) -> None:
    guarded, session = begin()
    assert session.guard.resume() == 0
    train(guarded, session.guard, steps=5)
    guarded, session = begin()
    assert session.guard.resume() == 0, "the run before has ended"
    session.guard.close()
    alone = watched(training(), rules=rules(RULES), on_error="warn")
    with pytest.warns(StepguardWarning, match="without a run folder"):
        assert alone.guard.resume() == 0


def test_a_run_that_broke_off_before_its_first_snapshot_begins_anew(begin) -> None:
    broken(begin, until=20)
    _, session = begin()
    assert session.guard.resume() == 0


def test_after_the_first_step_it_is_too_late(begin) -> None:
    guarded, session = begin()
    guarded.run(1, session.guard.step)
    with pytest.raises(StepguardError, match="right after watch"):
        session.guard.resume()


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def newer(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    path.unlink()
    old, snapshot.FORMAT = snapshot.FORMAT, 2
    del state["format"]
    try:
        snapshot.write(snapshot.Snapshot(**state), path.parent.with_suffix(".sqlite"), "certified")
    finally:
        snapshot.FORMAT = old


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (torn, "it is torn or was altered"),
        (altered, "it is torn or was altered"),
        (newer, r"expected format 1 at most, got 2 .*pip install -U stepguard"),
    ],
)
def test_a_snapshot_that_cannot_be_used_is_refused_and_the_older_one_is_taken(
    begin, spoil: Callable[[Path], None], words: str
) -> None:
    path = broken(begin)
    newest, older = shelf.shelved(path)
    spoil(newest.path)
    before = {found.path.name for found in shelf.shelved(path)}
    _, session = begin(on_error="warn")
    with pytest.warns(StepguardWarning, match=f"is refused: {words}.*next older one is tried"):
        assert session.guard.resume() == older.step
    assert {found.path.name for found in shelf.shelved(path)} == before


def test_a_snapshot_of_another_model_is_refused_by_the_name_of_its_tensor(begin, training) -> None:
    path = broken(begin)
    held = {found.path: found.path.read_bytes() for found in shelf.shelved(path)}
    other = training(net=lambda: nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3)))
    before = other.state()
    _, session = begin(other, on_error="warn")
    words = r"another training: model '0.weight': expected \[9, 8\] float32, got \[16, 8\] float32"
    with pytest.warns(StepguardWarning, match=words):
        assert session.guard.resume() == 0
    assert other.state() == before
    assert session.guard.run_path != path
    assert {found.path: found.path.read_bytes() for found in shelf.shelved(path)} == held


def test_a_run_that_another_process_writes_is_left_alone(begin) -> None:
    path = broken(begin)
    told, ready = os.pipe()
    child = os.fork()
    if child == 0:
        claim = shelf.Claim(path)
        os.write(ready, b"1")
        signal.pause()
        claim.close()
    os.read(told, 1)
    try:
        _, session = begin()
        assert session.guard.resume() == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    session.guard.close()
    _, session = begin()
    assert session.guard.resume() == 1 + QUIET, "the lock ends with the process that held it"


def test_the_attempt_that_names_a_run_is_resumed_by_watch_itself(begin) -> None:
    path = broken(begin)
    token = CURRENT.set(Attempt(resume=path, run_path=path, init="kaiming", lr_scale=0.5))
    try:
        guarded, session = begin()
    finally:
        CURRENT.reset(token)
    assert guarded.optimizer.param_groups[0]["lr"] == 0.05, "the snapshot counts, not the remedy"
    torch.rand(5)
    assert session.guard.resume() == 1 + QUIET
    guarded.now = 1 + QUIET
    guarded.run(1, session.guard.step)
    assert session.seen[0].frame.step == 1 + QUIET


def test_an_attempt_after_a_restart_does_not_resume_the_one_before(training, rules, tmp_path: Path) -> None:
    steps: list[int] = []
    file = rules(f"- {{name: r, when: step == {2 * QUIET} and loss > 0, action: [restart, warn]}}")

    def attempt(_: Attempt) -> None:
        guarded = training()
        with stepguard.watch(
            guarded.model, guarded.optimizer, rules=file, run=tmp_path, console=None, on_error="raise"
        ) as guard:
            steps.append(guard.resume())
            guarded.run(2 * QUIET + 5, guard.step)

    stepguard.supervise(attempt, budget=1.0)
    assert steps == [0, 0]


class Loader:
    """A stateful loader, as torchdata's are."""

    def __init__(self) -> None:
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_a_stateful_loader_is_resumed_but_not_rolled_back(begin, rules) -> None:
    at = 2 * QUIET + 5
    file = rules(f"- {{name: b, when: step == {at} and loss > 0, action: [rollback, warn]}}")
    guarded, session = begin(rules=file)
    loader = Loader()
    session.guard.keep_data(loader)
    with pytest.raises(Broken), session.guard:
        for step in range(at + 5):
            loader.at += 1
            guarded.run(1, session.guard.step)
            session.guard._snapshots.keeper.writer.finish()
            if step > at:
                assert session.guard.decisions[0].to == 1 + QUIET
                assert loader.at == step + 1
        raise Broken
    guarded, session = begin(rules=file)
    loader = Loader()
    session.guard.keep_data(loader)
    assert session.guard.resume() == 1 + QUIET
    assert loader.at == 1 + QUIET


def test_a_full_disk_costs_the_snapshot_and_not_the_training(begin, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    guarded, session = begin(on_error="warn")
    guarded.run(QUIET + 5, session.guard.step)
    session.guard._snapshots.keeper.writer.finish()
    (kept,) = shelf.shelved(session.guard.run_path)
    session.guard._reports._writer.flush()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            path = session.guard.snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path is None
    assert any("could not be written" in str(w.message) and "File too large" in str(w.message) for w in said)
    assert shelf.shelved(session.guard.run_path) == [kept]
    assert shelf.whole(kept)
    assert list(kept.path.parent.glob("*.draft")) == []
    guarded.run(5, session.guard.step)
    assert session.guard.snapshot() is not None
