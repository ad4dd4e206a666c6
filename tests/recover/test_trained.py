from __future__ import annotations

import pytest
import torch
from torch import nn

import stepguard
from stepguard.errors import RestartRequested, StepguardWarning
from stepguard.recover.attempt import Attempt
from stepguard.recover.trained import comes_trained, normalises


def net(norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))


def trained(model: nn.Module, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])
def test_what_was_trained_is_told_from_what_is_new(norm: type[nn.Module]) -> None:
    assert comes_trained(net(norm)) is None
    assert "1." in (comes_trained(trained(net(norm))) or "")


def test_a_model_with_a_norm_is_told_from_one_without() -> None:
    assert normalises(net())
    assert normalises(nn.Sequential(net(nn.BatchNorm1d)))
    assert not normalises(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))


def test_batches_that_were_seen_tell_where_the_weights_do_not() -> None:
    model = net(nn.BatchNorm1d)
    model(torch.randn(16, 4))
    assert comes_trained(model) == "1 has seen 1 batches"


def test_scales_that_begin_at_zero_lazy_ones_and_no_norms_at_all_are_new() -> None:
    model = net()
    nn.init.zeros_(model[1].weight)
    assert comes_trained(model) is None
    assert comes_trained(net(lambda _: nn.LazyBatchNorm1d())) is None  # type: ignore[arg-type]
    assert comes_trained(trained(nn.Linear(4, 2))) is None


def test_a_restart_leaves_the_weights_of_a_trained_model_and_lowers_the_rate() -> None:
    weights = {name: value.clone() for name, value in trained(net()).state_dict().items()}
    rates: list[float] = []

    def train(attempt: Attempt) -> None:
        model = net()
        model.load_state_dict(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        stepguard.watch(model, optimizer, run=None, console=None)
        rates.append(optimizer.param_groups[0]["lr"])
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert attempt.init is None
        if attempt.number == 1:
            raise RestartRequested("why", step=0, rule="r", remedy={"lr": 0.5, "init": "kaiming"})

    with pytest.warns(StepguardWarning, match="comes trained"):
        stepguard.supervise(train)
    assert rates == [0.1, 0.05]
