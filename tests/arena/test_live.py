"""The verdict on a training that is really run at another scale of its loss, or at another width."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arena.catalog import SCENARIOS
from arena.fitting import optimizer_of
from arena.live import TRIED, WIDTHS, Found, rescaled, run, with_scale, with_width
from arena.training import Training

QUICK = ("mlp/plain", "mlp/sgd", "mlp/lr-3", "mlp/wrong-sign", "rnn/tanh", "gru/weights-x50")
ASIDE = pytest.mark.filterwarnings("ignore::stepguard.errors.StepguardWarning")


@cache
def plain(name: str) -> Found:
    return run(SCENARIOS[name], 0)


@ASIDE
@settings(max_examples=6, deadline=None, derandomize=True)
@given(name=st.sampled_from(QUICK), power=st.floats(-4, 4))
def test_the_verdict_is_that_on_the_training_with_its_loss_times_any_factor(name: str, power: float) -> None:
    found = run(with_scale(SCENARIOS[name], 10**power), 0)
    assert found.label == plain(name).label
    assert (found.by is None) == (plain(name).by is None)


@ASIDE
@pytest.mark.parametrize("by", [0.5, 2.0])
@pytest.mark.parametrize("name", QUICK)
def test_the_verdict_is_that_on_the_training_at_another_width(name: str, by: float) -> None:
    found = run(with_width(SCENARIOS[name], by), 0)
    assert found.label == plain(name).label
    assert (found.by is None) == (plain(name).by is None)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ("adam", {"lr": 0.01, "weight_decay": 0.1}),
        ("adamw", {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("by", [2.0**-13, 2.0**13])
def test_a_training_with_its_loss_scaled_makes_the_same_updates(kind: str, more: dict, by: float) -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def trained(scale: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = optimizer_of(kind, model.parameters(), **more)
        rescaled(Training(model, optimizer, lambda t: model(x).square().mean(), float, 20), scale).run()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(trained(by), trained(1.0), rtol=1e-4, atol=1e-6)


def test_what_is_tried_can_be_built_at_another_width() -> None:
    assert set(QUICK) <= set(TRIED)
    assert {SCENARIOS[name].family for name in TRIED} == set(WIDTHS)
