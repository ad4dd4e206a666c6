"""Which layers, at which steps, and what is wrong with a model and an optimizer as a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stepguard.collect import pair
from stepguard.collect.cadence import LATER, YOUNG, Cadence
from stepguard.collect.collector import Collector
from stepguard.collect.layers import watched_modules
from stepguard.errors import StepguardError
from stepguard.signals import SIGNALS

Watch = Callable[..., Any]


def net() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = nn.Sequential()
    model.add_module("features", features)
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(64, 3))
    return model


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["features.0", "features.1", "features.2", "features.3", "head"]),
        ("*", ["features.0", "features.1", "features.2", "features.3", "head"]),
        ("features.*", ["features.0", "features.1", "features.2", "features.3"]),
        ("Conv2d", ["features.0", "features.3"]),
        ("Conv*", ["features.0", "features.3"]),
        (["head", "ReLU"], ["features.2", "head"]),
        (("nothing", "*.1"), ["features.1"]),
        ("features.[03]", ["features.0", "features.3"]),
    ],
)
def test_a_choice_by_names_and_classes(watching: Watch, choice: Any, names: list[str]) -> None:
    watched = watching(net(), choice=choice)
    frame = watched.train(torch.randn(2, 1, 8, 8))
    assert watched.names() == names
    assert all(vector.values.shape == (len(names),) for vector in frame.vectors.values())
    assert all(watched.read(frame, "act.std", name) is not None for name in names)


@pytest.mark.parametrize(
    ("choice", "near"),
    [
        ("features.9", "features."),
        ("heads", "head"),
        ("linear", "Linear"),
        (["Conv3d"], "Conv2d"),
        ("features", "features."),
        ("zzz", "head"),
        ("flat", "features."),
        ([], "head"),
    ],
)
def test_a_choice_that_matches_nothing_names_near_misses(choice: Any, near: str) -> None:
    model = net()
    with pytest.raises(StepguardError, match="matches no layer") as told:
        Collector(model, torch.optim.SGD(model.parameters(), lr=1), choice, print)
    assert near in str(told.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_is_a_single_layer_is_called_by_its_class() -> None:
    (item,) = watched_modules(nn.Linear(3, 2))
    assert item.layer == ("Linear", "Linear")


def complaints(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    return list(pair.complaints(model, optimizer))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_good_pair_has_no_complaints() -> None:
    model = net()
    assert complaints(model, sgd(model)) == []
    assert complaints(model, torch.optim.SGD(model[2].parameters(), lr=0.1)) == []


def test_the_optimizer_of_another_model() -> None:
    (told,) = complaints(net(), sgd(net()))
    assert "none of the model's parameters" in told


def test_a_part_that_was_replaced_after_the_optimizer_was_made() -> None:
    model = net()
    optimizer = sgd(model)
    model.head = nn.Linear(64, 3)
    (told,) = complaints(model, optimizer)
    assert "leaves out 2 of the model's parameters, first 'head.weight', and holds 2" in told


def test_parameters_of_two_models_or_of_two_optimizers_are_no_complaint() -> None:
    model, other = net(), net()
    both = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    assert complaints(model, both) == []
    model.head.requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    assert complaints(model, torch.optim.SGD([*rest, *other.parameters()], lr=0.1)) == []


def test_a_model_without_layers() -> None:
    (told,) = complaints(nn.Sequential(nn.Flatten(), nn.Dropout()), sgd(nn.Linear(2, 2)))
    assert "no layer to watch" in told


def test_without_layers_the_loss_and_the_gradients_are_still_told(watching: Watch) -> None:
    weight = nn.Parameter(torch.ones(3))
    model = nn.Flatten()
    watched = watching(model, torch.optim.SGD([weight], lr=0.1))
    (model(torch.ones(2, 3)) * weight).sum().backward()
    frame = watched.frame(torch.tensor(1.0))
    assert watched.layers == ()
    assert frame.scalars["loss"] == 1
    assert frame.scalars["grad_norm"] == pytest.approx(np.sqrt(12))
    weight.grad.fill_(np.nan)
    assert np.isnan(watched.frame(sampled=False).scalars["grad_norm"])


@pytest.mark.parametrize(
    "every", [0, -1, 2.5, 1.0, True, False, "x", "Auto", "", None, np.float64(2), [1], (2,)]
)
def test_cadences_that_are_none(every: object) -> None:
    with pytest.raises(StepguardError, match='"auto" or a whole number from 1') as told:
        Cadence(every)
    assert repr(every) in str(told.value)


@given(every=st.integers(1, 50), step=st.integers(0, 10_000), quiet=st.booleans())
def test_every_so_many_steps(every: int, step: int, quiet: bool) -> None:
    assert Cadence(every).measures(step, quiet=quiet) == (step % every == 0)


@given(step=st.integers(0, 10_000), quiet=st.booleans())
def test_auto_looks_closely_while_young_and_while_anything_is_pending(step: int, quiet: bool) -> None:
    expected = step < YOUNG or not quiet or step % LATER == 0
    assert Cadence("auto").measures(step, quiet=quiet) == expected


def test_auto_is_each_step_for_200_and_each_tenth_later() -> None:
    measured = [step for step in range(300) if Cadence("auto").measures(step, quiet=True)]
    assert measured == [*range(200), *range(200, 300, 10)]


def test_every_signal_of_the_table_is_measured(watching: Watch) -> None:
    """But those that the guard knows by itself, and the optimizer's second moment."""
    model = net()
    model.add_module("squash", nn.Tanh())
    model.add_module("drop", nn.Dropout(0.1))
    watched = watching(model)
    for _ in range(2):
        frame = watched.train(torch.randn(2, 1, 8, 8))
    found = {*frame.vectors, *frame.scalars}
    assert {name for name in SIGNALS if name not in found} <= {
        "lr",
        "lr_share",
        "loss_scale",
        "step_time",
        "optim.rms_ratio",
    }
    assert found <= set(SIGNALS)
    for name, vector in frame.vectors.items():
        assert SIGNALS[name].per == "layer"
        assert vector.values.dtype == np.float32
        assert vector.known.dtype == np.bool_
        assert np.isnan(vector.values[~vector.known]).all()
    assert all(SIGNALS[name].per == "run" for name in frame.scalars)
    assert frame.hist.shape == (len(watched.layers), 51)
    assert frame.hist.dtype == np.int32
