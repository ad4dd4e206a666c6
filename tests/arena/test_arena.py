"""A fixed part of the arena, trained and judged here; the whole of it runs by `python tests/arena`."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch

from arena import catalog, figures
from arena import faults as f
from arena.crashes import crashes
from arena.families.classic import deep, shallow
from arena.judge import Verdict, View, judge, scaled, thinned
from arena.record import Outcome, Recording, path_of, run_bare
from arena.training import Scenario
from stepguard.rules.packs import load_rules
from stepguard.signals import Frame, Layer, Vector

# The guard complains of scenarios that are made to be wrong: an optimizer without the model's parameters.
pytestmark = pytest.mark.filterwarnings("ignore::stepguard.errors.StepguardWarning")

FAILING = (
    "mlp/lr-3",
    "mlp/wrong-sign",
    "mlp/detached",
    "mlp/no-parameters",
    "small-cnn/nan-input",
    "small-cnn/dead-biases",
    "deep-mlp/default-init-20-sgd",
    "cnn/zero-init",
    "residual/no-norm-weights-x4",
    "recipe/scrambled",
)
HEALTHY = (
    "mlp/plain",
    "mlp/smoothed-floor",
    "mlp/negative-loss",
    "mlp/very-few-steps",
    "small-cnn/outlier-heals",
    "tables/wine",
    "residual/frozen-blocks",
    "fine-tuning/starts-trained",
)


@cache
def bare(scenario: Scenario, seed: int = 0) -> tuple[Outcome, Recording]:
    """A bare run; kept, since several tests look at the same ones."""
    recording, raw = run_bare(scenario, seed)
    steps = len(recording.frames)
    found = Outcome(
        scenario.name, scenario.family, scenario.intent, seed, steps, raw, crashes(recording), 0.0
    )
    return found, recording


def verdict(scenario: Scenario, total: bool = True, view: View | None = None) -> Verdict:
    return judge(load_rules("default"), *bare(scenario), total=total, view=view)


@pytest.mark.parametrize("name", FAILING)
def test_failing_runs_are_stopped(name: str) -> None:
    found = verdict(catalog.SCENARIOS[name])
    assert found.outcome.label == "failing"
    assert found.stopped is not None
    assert found.stopped < 0.62 * found.outcome.steps


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_are_left_alone(name: str) -> None:
    found = verdict(catalog.SCENARIOS[name])
    assert found.outcome.label == "healthy"
    assert (found.stopped, found.acted) == (None, None)


@pytest.mark.parametrize("name", ["mlp/lr-3", "small-cnn/dead-biases", "mlp/plain", "tables/wine"])
def test_the_verdict_does_not_depend_on_how_often_is_measured(name: str) -> None:
    seen = [verdict(catalog.SCENARIOS[name], view=partial(thinned, every=every)) for every in (1, 2, 10)]
    assert len({found.stopped is not None for found in seen}) == 1


@pytest.mark.parametrize("name", FAILING + HEALTHY)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_verdict_on_a_run_is_that_on_the_same_run_with_its_loss_scaled(name: str, scale: float) -> None:
    scenario = catalog.SCENARIOS[name]
    found = verdict(scenario, view=partial(scaled, by=scale))
    assert (found.stopped, found.by) == (verdict(scenario).stopped, verdict(scenario).by)


FAULTS = {
    "plain": (shallow, {"opt": "sgd", "lr": 0.1}, "healthy"),
    "lr-3": (shallow, {"opt": "sgd", "lr": 3.0}, "failing"),
    "weights-x03": (deep, {"prepare": f.weights(0.3), "opt": "sgd", "lr": 0.01}, "failing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_verdict_does_not_depend_on_the_scale_of_the_loss(fault: str) -> None:
    family, settings, label = FAULTS[fault]
    stops: list[str | None] = []
    for scale in (1e-4, 1.0, 1e4):
        scenario = family.healthy(
            f"{fault} x {scale}", **(settings | {"scale": scale, "lr": settings["lr"] / scale})
        )
        recording, raw = run_bare(scenario, 0)
        score = scenario.normalised(raw)
        assert (score < 0.5) == (label == "failing")
        outcome = Outcome("mlp/plain", "mlp", label, 0, len(recording.frames), raw, None, 0.0)
        stops.append(judge(load_rules("default"), outcome, recording, total=True).by)
    assert len(set(stops)) == 1, stops
    assert (stops[0] is not None) == (label == "failing")


@pytest.mark.parametrize("width", [16, 256])
@pytest.mark.parametrize("fault", ["plain", "lr-3"])
def test_the_verdict_does_not_depend_on_the_width(fault: str, width: int) -> None:
    family, settings, label = FAULTS[fault]
    recording, raw = run_bare(family.healthy(f"{fault} {width}", **(settings | {"width": width})), 0)
    outcome = Outcome("mlp/plain", "mlp", label, 0, len(recording.frames), raw, None, 0.0)
    assert outcome.label == label
    found = judge(load_rules("default"), outcome, recording, total=True)
    assert (found.stopped is not None) == (label == "failing")


def test_the_catalog_is_wide_and_its_halves_are_whole_families() -> None:
    later = frozenset[str]().union(*catalog.LATER.values())
    families = {scenario.family for scenario in catalog.SCENARIOS.values()} - later
    assert len(catalog.SCENARIOS) >= 120
    assert len(families) >= 14
    assert families >= catalog.TUNING
    assert 0.4 <= len(catalog.TUNING) / len(families) <= 0.6


def test_a_recording_comes_back_as_it_was(tmp_path) -> None:
    _, recording = bare(catalog.SCENARIOS["mlp/very-few-steps"])
    path = path_of(tmp_path, "mlp/very-few-steps", 0)
    recording.save(path)
    again = Recording.load(path)
    assert again.layers == recording.layers
    for before, after in zip(recording.frames, again.frames, strict=True):
        assert after.step == before.step
        assert after.scalars == pytest.approx(before.scalars, nan_ok=True)
        for name, vector in before.vectors.items():
            if vector.known.any():
                assert (after.vectors[name].known == vector.known).all()
                assert (after.vectors[name].values[vector.known] == vector.values[vector.known]).all()


@pytest.mark.parametrize("name", ["mlp/plain", "mlp/heavy-dropout", "recipe/freezing"])
def test_looking_on_and_validating_change_no_training(name: str) -> None:
    training, seen = (catalog.SCENARIOS[name].make(0) for _ in range(2))
    torch.manual_seed(1)
    training.run()
    torch.manual_seed(1)
    with seen.watch(rules="quiet", dry_run=True, run=None, console=None) as guard:
        seen.run(guard)
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, seen.model.state_dict()[key]), key


def test_the_loss_on_held_out_data_is_recorded() -> None:
    _, recording = bare(catalog.SCENARIOS["mlp/plain"])
    found = {f.step: f.scalars["metric.val_loss"] for f in recording.frames if "metric.val_loss" in f.scalars}
    assert list(found) == list(range(20, 300, 20))
    assert found[20] > 1
    assert 0 < found[280] < 0.2


def test_exact_intervals() -> None:
    low, high = figures.Share(99, 100).interval()
    assert (round(low, 4), round(high, 4)) == (0.9455, 0.9997)
    assert figures.Share(0, 0).interval() == (0.0, 1.0)


def test_the_lecture_s_crash_is_seen_with_hindsight_and_a_jump_is_none() -> None:
    crashed = partial(_with_std, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.2])
    jumped = partial(_with_std, [0.1, 0.1, 0.1, 0.1, 0.1, 2.0, 0.1])
    assert crashes(crashed()) == 6
    assert crashes(jumped()) is None


def _with_std(series: list[float]) -> Recording:
    frames = [
        Frame(t, vectors={"act.std": Vector(np.full(2, s, np.float32), np.ones(2, np.bool_))})
        for t, s in enumerate(series + series[-1:] * 30)
    ]
    return Recording((Layer("a", "Linear"), Layer("b", "Linear")), frames)
