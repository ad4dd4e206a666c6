from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

from stepguard.recover.attempt import Attempt
from stepguard.recover.remedies import apply_attempt, clip_gradients, kaiming, lsuv, scale_lr

STEPS = 12
CHANGED_AT = 5
Scheduler = Any
MakeScheduler = Callable[[Optimizer], Scheduler]

SCHEDULERS: dict[str, MakeScheduler] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 7),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.4, 0.8], total_steps=STEPS + 1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.1, 0.2], [0.4, 0.8], step_size_up=3),
    "SWALR": lambda o: swa_utils.SWALR(o, [0.01, 0.05], anneal_epochs=8),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 7), lr_scheduler.CosineAnnealingLR(o, 9)], [7]
    ),
    "SequentialLR of LambdaLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LambdaLR(o, lambda step: (step + 1) / 8),
            lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        ],
        [7],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 8), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def never(fault: Exception) -> None:
    raise fault


def an_optimizer(*, tensor: bool = False) -> Optimizer:
    """Two groups with their own learning rates."""
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    lrs = [torch.tensor(lr, dtype=torch.float64) if tensor else lr for lr in (0.1, 0.2)]
    groups = [{"params": [weight], "lr": lr} for weight, lr in zip(weights, lrs, strict=True)]
    return torch.optim.SGD(groups, momentum=0.9)


def rates(make: MakeScheduler | None, change: tuple[int, float] | None, *, tensor: bool) -> list[list[float]]:
    """The learning rates of each step, changed before that step by that factor."""
    optimizer = an_optimizer(tensor=tensor)
    scheduler = None if make is None else make(optimizer)
    seen: list[list[float]] = []
    for step in range(STEPS):
        if change is not None and change[0] == step:
            scale_lr(optimizer, scheduler, change[1])
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()
    return seen


@pytest.mark.parametrize("at", [0, CHANGED_AT])
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", ["none", *SCHEDULERS])
def test_the_schedule_goes_on_scaled(name: str, tensor: bool, at: int) -> None:
    make = SCHEDULERS.get(name)
    plain, scaled = rates(make, None, tensor=tensor), rates(make, (at, 0.25), tensor=tensor)
    for step in range(STEPS):
        factor = 0.25 if step >= at else 1.0
        assert scaled[step] == pytest.approx([factor * lr for lr in plain[step]]), f"step {step}"


def test_twice_a_half_is_a_quarter() -> None:
    optimizer = an_optimizer()
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for _ in range(2):
        scale_lr(optimizer, scheduler, 0.5)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.05]


def rprop_steps(held: bool, scaled: float = 1.0) -> list[float]:
    """How far Rprop moves a weight whose gradient changes its sign at every step."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Rprop([weight], lr=0.1)
    attempt = Attempt(pace=0.01) if held else Attempt()
    apply_attempt(nn.Identity(), optimizer, None, attempt, never)
    moved: list[float] = []
    for step in range(60):
        if step == 30:
            scale_lr(optimizer, None, scaled)
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, (-1.0) ** (step // 2))  # after a change of sign it pauses
        optimizer.step()
        moved.append(float((weight.detach() - before).abs()))
    return [distance for distance in moved if distance > 0.0]


def test_rprop_whose_pace_is_held_keeps_its_steps_at_the_learning_rate() -> None:
    alone, held = rprop_steps(held=False), rprop_steps(held=True)
    assert alone[-1] < 1e-5, "on gradients that disagree its steps shrink to nothing"
    assert held == pytest.approx([0.1] * len(held), rel=1e-4)


def test_the_steps_of_rprop_are_scaled_with_its_learning_rate() -> None:
    plain, scaled = (rprop_steps(held=True, scaled=factor) for factor in (1.0, 0.5))
    assert scaled[-1] == pytest.approx(0.5 * plain[-1], rel=1e-4)
    assert scaled[:5] == plain[:5]


def test_a_tensor_learning_rate_stays_a_tensor_of_its_own() -> None:
    optimizer = an_optimizer(tensor=True)
    scale_lr(optimizer, None, 0.5)
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert isinstance(first, Tensor)
    assert first is not second
    assert (float(first), float(second)) == (0.05, 0.1)


def test_a_learning_rate_that_groups_share_is_scaled_once() -> None:
    lr = torch.tensor(0.1)
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.Adam([{"params": [weight]} for weight in weights], lr=lr)
    scale_lr(optimizer, None, 0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.05, 0.05])


def test_a_scheduler_made_after_the_remedy_begins_from_the_scaled_learning_rate() -> None:
    optimizer = an_optimizer()
    apply_attempt(nn.Linear(2, 2), optimizer, None, Attempt(lr_scale=0.5), never)
    lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


@pytest.mark.parametrize("most", [0.5, 1e9])
def test_gradients_are_clipped_together(most: float) -> None:
    optimizer = an_optimizer()
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])]
    weights = [group["params"][0] for group in optimizer.param_groups]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad.clone()
    clip_gradients(optimizer, most)
    factor = min(1.0, most / 5)
    for weight, grad in zip(weights, grads, strict=True):
        torch.testing.assert_close(weight.grad, grad * factor, rtol=1e-4, atol=0)


def test_without_gradients_there_is_nothing_to_clip() -> None:
    optimizer = an_optimizer()
    clip_gradients(optimizer, 1.0)
    assert all(group["params"][0].grad is None for group in optimizer.param_groups)


# Kaiming


FOLLOWERS = {
    "ReLU": (nn.ReLU(), math.sqrt(2)),
    "LeakyReLU": (nn.LeakyReLU(0.3), math.sqrt(2 / (1 + 0.3**2))),
    "Tanh": (nn.Tanh(), 5 / 3),
    "Sigmoid": (nn.Sigmoid(), 1.0),
    "SELU": (nn.SELU(), 0.75),
    "GELU": (nn.GELU(), math.sqrt(2)),
}


@pytest.mark.parametrize("name", FOLLOWERS)
@pytest.mark.parametrize("layer", ["linear", "conv", "conv then norm"])
def test_the_std_of_the_weights_is_that_of_theory(name: str, layer: str) -> None:
    torch.manual_seed(0)
    activation, gain = FOLLOWERS[name]
    first: list[nn.Module] = {
        "linear": [nn.Linear(200, 300)],
        "conv": [nn.Conv2d(16, 64, 5)],
        "conv then norm": [nn.Conv2d(16, 64, 5), nn.BatchNorm2d(64)],
    }[layer]
    fan_in = 200 if layer == "linear" else 16 * 25
    kaiming(nn.Sequential(*first, activation, nn.Flatten(), nn.Linear(300, 2)))
    weight = first[0].weight.detach()
    # 25,600 draws and more: the std of their std is under 0.5 %.
    assert float(weight.std()) == pytest.approx(gain / math.sqrt(fan_in), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0.0, abs=4 * gain / math.sqrt(fan_in * weight.numel()))


def test_the_last_layer_feeds_nothing_and_one_without_activation_a_relu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 400), nn.Linear(400, 400))
    kaiming(model)
    assert std(model[0].weight) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert std(model[1].weight) == pytest.approx(math.sqrt(1 / 400), rel=0.02)


def test_a_last_layer_that_an_activation_follows_is_initialised_for_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 400), nn.Tanh())
    kaiming(model)
    assert std(model[0].weight) == pytest.approx(5 / 3 / math.sqrt(400), rel=0.02)


def test_biases_are_zero_and_all_else_is_as_torch_makes_it() -> None:
    model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.GRU(10, 4), nn.Embedding(100, 30))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.0).add_(7.0)
    model[1](torch.randn(20, 5, 10) + 3)
    kaiming(model)
    assert model[0].bias.eq(0).all()
    fresh = nn.BatchNorm1d(5).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in model[1].state_dict().items())
    assert all(0.1 < float(weights.detach().abs().max()) <= 0.5 for weights in model[2].parameters())
    assert std(model[3].weight) == pytest.approx(1, rel=0.05)


def test_what_is_frozen_stays() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for module in (model[0], model[1]):
        module.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    lsuv(model, never)
    model(torch.arange(5))
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {"0.weight", "1.weight", "1.bias"}


def test_a_deep_network_keeps_its_scale() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(256, 256), nn.ReLU())]
    model = nn.Sequential(*layers)
    x = torch.randn(512, 256)
    before = float(model(x).detach().square().mean())
    kaiming(model)
    after = float(model(x).detach().square().mean())
    assert before < 1e-3
    assert 0.2 < after < 5


def test_a_model_without_weighted_layers_is_left_alone() -> None:
    model = nn.Sequential(nn.ReLU(), nn.LayerNorm(3))
    before = copy.deepcopy(model.state_dict())
    kaiming(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def std(x: Tensor) -> float:
    return float(x.detach().std(correction=0))


@pytest.mark.parametrize("init", [None, "kaiming", "lsuv"])
def test_an_attempt_is_applied(init: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    before = std(model[0].weight)
    apply_attempt(model, optimizer, None, Attempt(lr_scale=0.5, init=init), never)
    outputs: list[Tensor] = []
    model[0].register_forward_hook(lambda _m, _a, output: outputs.append(output))
    model(torch.randn(64, 400))
    assert optimizer.param_groups[0]["lr"] == 0.2
    after = std(model[0].weight)
    if init is None:
        assert after == before
    elif init == "kaiming":
        assert after == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    else:
        assert std(outputs[-1]) == pytest.approx(1, abs=1e-4)
