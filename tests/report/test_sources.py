"""Each source of a fault is named where the frames show it, and only there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from stepguard.report.causes import likely_causes
from stepguard.report.findings import Findings, Past
from stepguard.rules.alert import Evidence
from stepguard.signals import Frame, Layer, Vector

NAN = math.nan
LAYERS = [Layer("fc1", "Linear"), Layer("act", "ReLU"), Layer("fc2", "Linear")]
OWN = (True, False, True)
"""The layers that have weights."""
Values = Mapping[str, Sequence[float | None]]


def frame(step: int, vectors: Values | None = None, **scalars: float) -> Frame:
    """`input__std=1` is the scalar `input.std`; a layer with None was not measured."""
    made = Frame(step, {name.replace("__", "."): value for name, value in scalars.items()})
    for name, values in (vectors or {}).items():
        known = np.array([value is not None for value in values])
        made.vectors[name] = Vector(np.array([NAN if v is None else v for v in values], np.float32), known)
    return made


def healthy(step: int, **scalars: float) -> Frame:
    """A frame of a training in which all is well."""
    vectors: Values = {
        "act.nonfinite": (0, 0, 0),
        "act.absmax": (2, 2, 3),
        "act.mean": (0, 0.4, 0),
        "act.std": (1, 0.6, 1),
        "act.dead": (0, 0, 0),
        "weight.norm": (5, None, 5),
        "weight.nonfinite": (0, None, 0),
        "update.ratio": (1e-3, None, 1e-3),
        "grad.nonfinite": (0, None, 0),
        "grad.norm": (1, None, 1),
    }
    usual = {"loss": 2.3, "lr": 0.1, "input__mean": 0.1, "input__std": 1.0, "input__nonfinite": 0.0}
    return frame(step, vectors, **{**usual, **scalars})


def changed(found: Frame, vectors: Values) -> Frame:
    """The frame with other values of some signals; None for a whole signal takes it out."""
    found.vectors |= frame(0, vectors).vectors
    return found


def causes(signal: str, *frames: Frame) -> tuple[str, ...]:
    """What is said at the last frame of an alert that fires at it."""
    past = Past.none()
    for each in frames:
        past.see(each)
    readings = tuple(each.scalars.get(signal, 1.0) for each in frames)
    evidence = Evidence(signal, readings[-1], tuple(each.step for each in frames), readings)
    return likely_causes(Findings(evidence, [], LAYERS, past))


BAD_EVERYWHERE: Values = {"act.nonfinite": (4, 4, 4), "grad.nonfinite": (9, None, 9)}


@pytest.mark.parametrize("signal", ["loss", "grad.nonfinite", "act.nonfinite"])
def test_the_batch_itself(signal: str) -> None:
    bad = changed(healthy(7, loss=NAN, input__nonfinite=4), BAD_EVERYWHERE)
    expected = "the batch itself: its inputs hold 4 values that are NaN or Inf at step 7"
    assert causes(signal, healthy(6), bad) == (expected,)


def test_weights_that_a_bad_batch_has_broken() -> None:
    bad = changed(healthy(7, loss=NAN, input__nonfinite=1), BAD_EVERYWHERE)
    broken = changed(healthy(8, loss=NAN), {**BAD_EVERYWHERE, "weight.nonfinite": (9, None, 9)})
    batch = "the batch of step 7 held 1 value that is NaN or Inf"
    assert causes("weight.nonfinite", healthy(6), bad, broken) == (batch,)
    since = "NaN or Inf stand in the weights of 2 layers since a step before"
    assert causes("loss", healthy(6), bad, broken) == (f"{since}: {batch}",)
    (later,) = causes("loss", healthy(6), bad, healthy(8), changed(healthy(9, loss=NAN), broken_ones()))
    assert later == since, "a batch of long ago is none of its causes"


def broken_ones() -> Values:
    return {**BAD_EVERYWHERE, "weight.nonfinite": (9, None, 9)}


def test_weights_that_a_loss_has_broken() -> None:
    broken = changed(healthy(8, loss=NAN), broken_ones())
    (cause,) = causes("weight.nonfinite", healthy(6), healthy(7, loss=NAN), broken)
    assert cause == "they came with step 7, whose loss was not finite"


def test_a_loss_that_diverged() -> None:
    bad = changed(healthy(8, loss=math.inf), {"act.nonfinite": (0, 0, 4)})
    (cause,) = causes("grad.nonfinite", healthy(0), healthy(6, loss=1e6), healthy(7, loss=1e30), bad)
    assert cause == "the loss went from 2.3 to 1e+30: it diverged until numbers overflowed"
    raw = changed(healthy(8, loss=math.inf, input__std=96.0), {})
    assert "not normalised" in causes("loss", healthy(0), healthy(6), healthy(7, loss=1e30), raw)[0]
    assert len(causes("loss", healthy(0), healthy(6), healthy(7), raw)) == 1, "raw inputs alone are no NaN"
    noise = [healthy(step, loss=loss) for step, loss in enumerate((0.01, -0.5, 0.7, -0.2, 0.6))]
    assert "it diverged" not in causes("loss", *noise, healthy(8, loss=NAN))[0]


def test_the_first_layer_whose_output_is_not_finite() -> None:
    bad = changed(healthy(8, loss=NAN), {"act.nonfinite": (0, 4, 4)})
    (cause,) = causes("loss", healthy(7), bad)
    assert cause == "inputs and weights are finite: the first output that is not is that of act (ReLU)"


def test_what_comes_behind_the_model() -> None:
    (cause,) = causes("loss", healthy(7), healthy(8, loss=NAN))
    assert cause == (
        "the model's outputs are finite (3 at most): look at the targets, their masks and the loss itself"
    )
    bad_gradient = changed(healthy(8), {"grad.nonfinite": (1, None, 1)})
    (cause,) = causes("grad.nonfinite", healthy(7), bad_gradient)
    assert cause.startswith("the loss and the model's outputs are finite: a derivative is not")
    scaled = changed(healthy(8, loss_scale=65536.0), {"grad.nonfinite": (1, None, 1)})
    assert causes("grad.nonfinite", healthy(7), scaled) == (), "a scale that is too large, perhaps"


def test_where_no_output_was_measured_none_is_blamed() -> None:
    assert causes("loss", frame(7, loss=2.0), frame(8, loss=NAN)) == ()


def test_half_of_the_layers_without_a_gradient() -> None:
    cut = {"grad.nonfinite": (None, None, 0), "grad.norm": (None, None, 1), "update.ratio": (0, None, 1e-3)}
    frames = [changed(healthy(step), cut) for step in range(6)]
    (cause,) = causes("loss", *frames)
    assert cause == (
        "1 of 2 layers, fc1 (Linear), require a gradient and never had one: look behind them for detach(),"
        " no_grad(), item()"
    )
    assert causes("loss", healthy(0), *frames[1:]) == (), "it had one once: an expert that is idle"
    assert causes("loss", *frames[:4]) == (), "too early to tell"
    frozen = changed(healthy(9), {**cut, "update.ratio": (None, None, 1e-3)})
    assert causes("loss", frozen) == ()


def test_no_layer_with_a_gradient() -> None:
    none = {"update.ratio": (0, None, 0)}
    bare = changed(healthy(9), none)
    for name in ("grad.nonfinite", "grad.norm"):
        del bare.vectors[name]
    (cause,) = causes("weight.norm", bare)
    assert cause.startswith("no layer ever had a gradient, though they require one: the loss does not depend")
    del bare.vectors["update.ratio"]
    assert causes("weight.norm", bare) == ("no weight requires a gradient: all of the model is frozen",)
    bare.step = 0
    assert causes("weight.norm", bare) == (), "of the first steps nothing is known"


def test_weights_that_the_optimizer_does_not_hold() -> None:
    (cause,) = causes("loss", changed(healthy(3), {"update.ratio": (0, None, 0)}))
    assert cause == (
        "all layers have gradients and none moves: the optimizer does not hold their weights, or its updates"
        " are rounded off"
    )
    (cause,) = causes("loss", changed(healthy(3), {"update.ratio": (0, None, 1e-3)}))
    assert cause.startswith("1 of 2 layers have gradients and do not move: ")
    assert causes("loss", changed(healthy(3, lr=0.0), {"update.ratio": (0, None, 0)})) == ()


def test_an_activation_that_is_dead() -> None:
    dead: Values = {"act.dead": (0, 1, 0), "grad.norm": (0, None, 1)}
    assert causes("grad.norm", changed(healthy(3), dead)) == (
        "act (ReLU) puts out zeros only, for every example: no gradient passes it",
    )
    pushed = changed(healthy(3), {**dead, "act.mean": (-10, 0, 0)})
    (cause,) = causes("act.dead", pushed)
    assert cause == (
        "act (ReLU) puts out zeros only, for every example: what fc1 (Linear) gives it is below zero"
        " (mean -10, std 1), by a bias or by too large a step"
    )
    assert causes("loss", pushed) == (), "a loss has other reasons, too"
    assert causes("act.dead", changed(healthy(3), dead)) == ()


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        ({"input__mean": 77.0, "input__std": 96.0}, "the inputs are not normalised: mean 77, std 96"),
        ({"dropout": 0.99}, "a dropout of 0.99 leaves out all but 0.01 of the units"),
        (
            {"loss": -1e6},
            "the loss fell from 2.3 to -1e+06, as if without an end: is its sign right?",
        ),
    ],
)
def test_what_the_run_shows(scalars: dict[str, float], expected: str) -> None:
    assert causes("grad.norm", healthy(0), healthy(5, **scalars)) == (expected,)


@pytest.mark.parametrize("scalars", [{}, {"dropout": 0.5}, {"loss": -20.0}, {"input__std": 3.0}, {"lr": 0.0}])
@pytest.mark.parametrize("signal", ["loss", "grad.norm", "act.std", "update.ratio", "weight.norm"])
def test_nothing_is_said_of_what_is_well(signal: str, scalars: dict[str, float]) -> None:
    assert causes(signal, healthy(0), healthy(5, **scalars)) == ()


def test_weights_that_decay_has_taken_away() -> None:
    shrunk = changed(healthy(9), {"weight.norm": (0.05, None, 0.01)})
    (cause,) = causes("update.ratio", healthy(0), shrunk)
    assert (
        cause
        == "the weights of 2 layers have shrunk to 0.01 of what they were, or less: too much weight decay?"
    )
