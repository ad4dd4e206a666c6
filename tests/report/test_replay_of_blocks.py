"""A replay reads blocks, and of them only what rules and remedies look at: it says what the live run said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.engine import Engine
from stepguard.recover.attempt import Attempt
from stepguard.recover.recovery import Recovery
from stepguard.report.replay import Replay, replay
from stepguard.rules.packs import load_rules
from stepguard.rules.rule import Ruleset
from stepguard.series.runfile import RunFile, RunWriter
from stepguard.signals import HIST_BINS, SIGNALS, Frame, Layer, Vector

LAYERS = (Layer("conv", "Conv2d"), Layer("relu", "ReLU"), Layer("head", "Linear"))
INFO = {
    "total_steps": None, "dry_run": False, "restarts": {}, "seed": 0, "lr_scale": 1.0, "init": None,
    "clip": None,
}  # fmt: skip
OWN = """
version: 1
extends: default
rules:
  - {name: high, when: loss > 2, for: 2, keep: 3, message: "{value}", action: {restart: auto}}
  - {name: layers, when: act.std > 2, for: 2, action: [{skip: {times: 2}}, warn]}
  - {name: crash, when: "share(crash(act.std, 1.5, 1.5, 20)) >= 0.5", action: [{lower_lr: {by: 0.5}}, halt]}
  - {name: jump, when: "spike(loss, 20, by=1.5) or zscore(grad_norm, 20) > 9", message: "{ratio:.3f}"}
  - {name: slow, when: "drift(loss, 40, by=1.2) or plateau(loss, 40, by=0.3)", active: 60..}
  - {name: often, when: "held(any(grad.nonfinite > 0), 2, of=30)", severity: critical, action: halt}
"""


def frames(seed: int, count: int) -> list[Frame]:
    """Full at some steps, scalars and a clean screen at the others, with gaps and numbers missing."""
    random = np.random.default_rng(seed)
    every, gap = random.choice([1, 7, 10]), random.choice([1.0, 0.8])
    clean = Vector(np.zeros(3, np.float32), np.array([True, False, True]))
    level, made = 1.0, list[Frame]()
    for step in range(count):
        if random.random() > gap:
            continue
        level *= np.exp(random.normal(0, 0.05)) * random.choice([1, 3, 1 / 3], p=[0.96, 0.02, 0.02])
        frame = Frame(step, {"loss": level * float(np.exp(random.normal(0, 0.1))), "lr": 0.1})
        if random.random() < 0.02:
            frame.scalars["loss"] = float(random.choice([np.nan, np.inf]))
        frame.vectors["grad.nonfinite"] = clean
        if step % every == 0:
            frame.scalars["grad_norm"] = level
            frame.hist = np.ones((3, HIST_BINS + 1), np.int32)
            for signal in SIGNALS.values():
                if signal.per == "layer" and random.random() < 0.9:
                    odd = random.random(3) < 0.02
                    values = np.where(odd, np.nan, level * np.exp(random.normal(0, 0.3, 3)))
                    values = odd.astype(float) if signal.name.endswith("nonfinite") else values
                    frame.vectors[signal.name] = Vector(values.astype(np.float32), random.random(3) < 0.95)
        made.append(frame)
    return made


def recorded(path: Path, made: list[Frame]) -> Path:
    writer = RunWriter(path)
    writer.begin_attempt(1, INFO)
    writer.layers(LAYERS)
    for frame in made:
        writer.frame(frame)
        if frame.step % 100 == 0:
            writer.flush()  # small blocks, and frames that do not wait
    writer.end_attempt("completed")
    writer.close()
    return path


def live(made: list[Frame], rules: Ruleset) -> Replay:
    """One frame after the other, as they came."""
    recovery = Recovery(Engine(rules, LAYERS), Attempt(number=1, seed=0))
    seen = [recovery.observe(frame) for frame in made]
    changes = tuple(change for each in seen for change in each.changes)
    return Replay(1, len(made), changes, tuple(each.decision for each in seen if each.decision is not None))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Ruleset:
    path = tmp_path_factory.mktemp("rules") / "own.yaml"
    path.write_text(OWN, encoding="utf-8")
    return load_rules(path)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_replayed_is_live(own: Ruleset, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    made = frames(seed, 250)
    with RunFile(recorded(tmp_path_factory.mktemp("run") / "run.sqlite", made)) as run:
        (record,) = run.attempts()
        again = replay(run, record, own)
    expected = live(made, own)
    assert len(expected.fired) > 0
    assert repr(again.changes) == repr(expected.changes)
    assert repr(again.decisions) == repr(expected.decisions)
    assert again.steps == len(made)
