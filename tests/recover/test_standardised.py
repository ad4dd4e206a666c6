"""Steps on standardised inputs: the same training as on inputs that were standardised beforehand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import stepguard
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.recover.remedies import lsuv
from stepguard.recover.standardised import Standardised

Make = Callable[[Iterable[Any]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
UNITS = torch.tensor([1.0, 1000.0, 0.03, 30.0])
"""No powers of two, which the scales are: those nearest to the spreads."""


def never(fault: Exception) -> None:
    raise fault


def columns(seed: int = 0, rows: int = 256) -> tuple[Tensor, Tensor]:
    """Inputs of very different size and place, all of which count, and their classes."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=made)
    return UNITS * (x + torch.tensor([0.0, 2.0, 0.0, -5.0])), (x.sum(1) > 0).long()


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16, bias=bias), nn.Tanh(), nn.Linear(16, 2))


def begun(model: nn.Module, x: Tensor) -> Standardised:
    """The model initialised on a batch."""
    inputs = Standardised()
    inputs.begin(model)
    lsuv(model, never, inputs)
    model(x)
    return inputs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_takes_the_steps_that_it_takes_on_standardised_inputs(make: Make, bias: bool) -> None:
    x, y = columns()
    x, model = x.double(), network(bias).double()
    inputs = begun(model, x)
    mean, scale = inputs.state_dict()["0"]
    twin = copy.deepcopy(model)
    with torch.no_grad():  # the same function of the standardised inputs
        if bias:
            twin[0].bias.add_(twin[0].weight @ mean)
        twin[0].weight.mul_(scale)
    mine, theirs = make(model.parameters()), make(twin.parameters())
    for _ in range(30):
        for each, optimizer, given in ((model, mine, x), (twin, theirs, (x - mean) / scale)):
            optimizer.zero_grad()
            F.cross_entropy(each(given), y).backward()
            if each is model:
                inputs.look()
                inputs.enter()
            optimizer.step()
            inputs.leave()
    torch.testing.assert_close(model(x), twin((x - mean) / scale), rtol=1e-6, atol=1e-6)


def test_scales_are_the_spreads_and_only_of_layers_whose_inputs_differ_much() -> None:
    x, _ = columns()
    state = begun(network(), x).state_dict()
    mean, scale = state["0"]
    torch.testing.assert_close(mean, x.mean(0))
    assert float((scale / x.std(0)).log2().abs().max()) <= 0.51
    assert bool((state["2"][1] == 1).all()), "hidden units are even"
    even = begun(network(), x / UNITS).state_dict()
    assert all(bool((scale == 1).all() and (mean == 0).all()) for mean, scale in even.values())


def test_an_input_that_does_not_vary_has_a_typical_scale_and_a_rare_one_a_hundredth() -> None:
    x, _ = columns()
    x = torch.cat([x, torch.full((len(x), 1), 7.0), torch.zeros(len(x), 1)], 1)
    x[0, 5] = 1e-5
    torch.manual_seed(0)
    scale = begun(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), x).state_dict()["0"][1]
    typical = float(x.std(0, correction=0)[:5][x.std(0)[:5] > 0].median())
    assert float(scale[4]) == pytest.approx(typical, rel=0.5)
    assert float(scale[5]) == pytest.approx(typical / 100, rel=0.5)


def test_a_layer_begins_with_outputs_of_mean_0_and_std_1_to_which_all_inputs_add() -> None:
    x, _ = columns()
    model = network()
    begun(model, x)
    output = model[0](x).detach()
    assert float(output.mean()) == pytest.approx(0, abs=1e-3)
    assert float(output.std(correction=0)) == pytest.approx(1, abs=1e-3)
    shares = (model[0].weight.detach() * x.std(0)).square().sum(0).sqrt()
    assert float(shares.max() / shares.min()) < 4


def test_gradients_come_back_and_so_do_weights_that_do_not_move() -> None:
    x, y = columns()
    model = network()
    inputs = begun(model, x)
    F.cross_entropy(model(x), y).backward()
    weight, grad = model[0].weight.clone(), model[0].weight.grad
    inputs.look()
    assert torch.equal(model[0].weight, weight)
    inputs.enter()
    assert bool((model[0].weight != weight).any())
    assert model[0].weight.grad is not grad
    inputs.leave()
    inputs.leave()
    assert torch.equal(model[0].weight, weight)
    assert model[0].weight.grad is grad


def accuracy(init: str, lr: float, make: type[Optimizer] = torch.optim.SGD) -> float:
    """Of a training under a guard, in an attempt that begins with this initialisation and is paced."""
    x, y = columns()
    token = CURRENT.set(Attempt(number=2, init=init, pace=0.01, clip=1.0))
    try:
        model = network()
        optimizer = make(model.parameters(), lr=lr)  # pyright: ignore[reportCallIssue]
        with stepguard.watch(model, optimizer, rules="quiet", run=None, console=None) as guard:
            for step in range(120):
                rows = slice(64 * (step % 4), 64 * (step % 4) + 64)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                guard.step(loss)
    finally:
        CURRENT.reset(token)
    test_x, test_y = columns(1, 1000)
    return float((model(test_x).argmax(1) == test_y).float().mean())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_raw_columns_are_learned_that_no_learning_rate_alone_would_have_learned(
    make: type[Optimizer],
) -> None:
    assert accuracy("lsuv", 0.1, make) < 0.85
    assert accuracy("standardise", 0.1, make) > 0.95


def guarded_steps(rules: str, steps: int = 3) -> tuple[nn.Module, list[Tensor], Tensor]:
    """A model under a guard in a standardised attempt, its first weights after each step, and its inputs."""
    x, y = columns()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    token = CURRENT.set(Attempt(number=2, init="standardise"))
    try:
        guard = stepguard.watch(model, optimizer, rules=rules, run=None, console=None, on_error="raise")
    finally:
        CURRENT.reset(token)
    seen: list[Tensor] = []
    with guard:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            before = model[0].weight.grad.clone()
            guard.step(loss)
            assert torch.equal(model[0].weight.grad, before), "the gradients are the training's own again"
            seen.append(model[0].weight.detach().clone())
    return model, seen, x


def test_a_step_that_is_skipped_leaves_the_weights_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "skips.yaml"
    file.write_text("version: 1\nrules:\n- {name: r, when: step >= 1, action: {skip: {times: 9}}}\n")
    _, (first, second, third), _ = guarded_steps(str(file))
    assert torch.equal(first, second)
    assert torch.equal(second, third)


def test_what_the_rules_see_are_the_gradients_on_standardised_inputs() -> None:
    """As they come the first layer's gradients are thousands of times the last one's, which is an alert."""
    _, seen, _ = guarded_steps("default", steps=40)
    assert len(seen) == 40


def test_a_step_with_a_closure_is_taken_on_the_inputs_as_they_come() -> None:
    x, y = columns()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    token = CURRENT.set(Attempt(number=2, init="standardise"))
    try:
        guard = stepguard.watch(model, optimizer, rules="quiet", run=None, console=None, on_error="raise")
    finally:
        CURRENT.reset(token)
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with guard:
        for _ in range(3):
            optimizer.step(closure)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
