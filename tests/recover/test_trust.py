"""Each layer's update held to a share of its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from stepguard.recover.trust import LEAST, TrustRatios

Make = Callable[[Iterable[Any]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=30.0, momentum=0.9, weight_decay=0.01),
    "tiny SGD": lambda p: torch.optim.SGD(p, lr=1e-4),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


class Shallow(nn.Module):
    """Two layers, a norm between them, and a parameter that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.shift = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x) + self.shift).relu())

    def layers(self) -> dict[str, list[nn.Parameter]]:
        modules = {name: module for name, module in self.named_modules() if name}
        return {"": [self.shift], **{name: list(module.parameters()) for name, module in modules.items()}}


def step(model: nn.Module, optimizer: Optimizer) -> None:
    x, y = torch.randn(32, 8), torch.randint(3, (32,))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    closure()
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)  # pyright: ignore
    else:
        optimizer.step()


def flat(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def moved(before: Shallow, after: Shallow) -> dict[str, Tensor]:
    old = before.layers()
    return {name: flat(new) - flat(old[name]) for name, new in after.layers().items()}


def share(before: Shallow, after: Shallow) -> dict[str, float]:
    """How far each layer has moved, relative to its weights."""
    sizes = {name: float(flat(own).norm()) for name, own in before.layers().items()}
    return {name: float(by.norm()) / sizes[name] for name, by in moved(before, after).items()}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_layer_moves_by_its_share_in_the_direction_of_the_optimizer(make: Make) -> None:
    model = Shallow()
    plain = copy.deepcopy(model)
    optimizer, bare = make(model.parameters()), make(plain.parameters())
    trust = TrustRatios(model, optimizer)
    for _ in range(3):
        before = copy.deepcopy(model)
        plain.load_state_dict(model.state_dict())
        seed = torch.random.get_rng_state()
        step(plain, bare)
        torch.random.set_rng_state(seed)
        trust.enter()
        step(model, optimizer)
        trust.leave(0.01)
        assert share(before, model) == pytest.approx(dict.fromkeys(model.layers(), 0.01), rel=1e-2)
        for own, free in zip(moved(before, model).values(), moved(before, plain).values(), strict=True):
            assert float(F.cosine_similarity(own, free, dim=0)) > 0.999


def test_what_it_remembers_from_one_step_to_the_next_is_nothing() -> None:
    model = Shallow()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    kept = TrustRatios(model, optimizer)
    for each in (0.01, 0.1):
        before = copy.deepcopy(model)
        for trust in (kept, TrustRatios(model, optimizer)):
            model.load_state_dict(before.state_dict())
            state = copy.deepcopy(optimizer.state_dict())
            torch.manual_seed(1)
            trust.enter()
            step(model, optimizer)
            trust.leave(each)
            ends = flat(model.parameters())
            optimizer.load_state_dict(state)
        torch.testing.assert_close(ends, flat(model.parameters()), rtol=0, atol=0)


def test_a_step_that_does_not_move_a_layer_leaves_it_bit_for_bit() -> None:
    model = Shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trust, before = TrustRatios(model, optimizer), copy.deepcopy(model)
    model.last.requires_grad_(False)
    trust.enter()
    optimizer.step()  # without gradients
    trust.leave(0.01)
    torch.testing.assert_close(flat(model.parameters()), flat(before.parameters()), rtol=0, atol=0)
    trust.enter()
    step(model, optimizer)
    trust.leave(0.01)
    still = [name for name, by in moved(before, model).items() if not by.any()]
    assert still == ["last"]


def test_a_layer_of_zeros_moves_as_one_of_small_weights() -> None:
    model = Shallow()
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trust, before = TrustRatios(model, optimizer), copy.deepcopy(model)
    trust.enter()
    step(model, optimizer)
    trust.leave(0.01)
    units = 3 + 3  # rows of the weights, and the biases
    assert float(moved(before, model)["last"].norm()) == pytest.approx(0.01 * LEAST * units**0.5, rel=1e-4)


def test_how_usual_initialisations_begin_is_above_the_least() -> None:
    for layer in (nn.Linear(4096, 64), nn.Linear(3, 64), nn.Conv2d(3, 64, 3), nn.Embedding(64, 8)):
        own = list(layer.parameters())
        units = sum(len(parameter) for parameter in own)
        assert float(flat(own).norm()) > LEAST * units**0.5


def test_an_update_that_is_not_finite_is_left_as_it_is() -> None:
    model = Shallow()
    trust = TrustRatios(model, torch.optim.SGD(model.parameters(), lr=0.1))
    trust.enter()
    with torch.no_grad():
        model.first.bias[0] = torch.nan
        model.last.bias[0] += 1.0
    trust.leave(0.01)
    assert int(flat(model.parameters()).isnan().sum()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_other_kinds_of_numbers(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 64, dtype=dtype)
    trust = TrustRatios(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    before = flat(layer.parameters())
    trust.enter()
    with torch.no_grad():
        layer.weight.mul_(3.0)
    trust.leave(0.1)
    by = (flat(layer.parameters()) - before).norm() / before.norm()
    assert float(by) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("make", "shares"),
    [
        (None, [1.0, 1.0]),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: (step + 1) / 4), [0.25, 0.5, 0.75, 1.0, 1.0]),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: 1e-5), [0.01, 0.01]),
        (lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=10, pct_start=0.3), [0.04, 0.52, 1.0]),
    ],
)
def test_within_a_schedule_the_share_is_that_of_the_learning_rate(
    make: Callable[[Optimizer], Any] | None, shares: list[float]
) -> None:
    model = Shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler, trust = None if make is None else make(optimizer), TrustRatios(model, optimizer)
    for each in shares:
        before = copy.deepcopy(model)
        trust.enter()
        step(model, optimizer)
        trust.leave(0.1)
        assert share(before, model)["first"] == pytest.approx(0.1 * each, abs=1e-3)
        if scheduler is not None:
            scheduler.step()


def test_groups_of_a_smaller_learning_rate_move_by_so_much_less() -> None:
    model = Shallow()
    groups = [{"params": [*model.first.parameters()], "lr": 0.02}, {"params": [*model.last.parameters()]}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    trust, before = TrustRatios(model, optimizer), copy.deepcopy(model)
    trust.enter()
    step(model, optimizer)
    trust.leave(0.01)
    found = share(before, model)
    assert found == pytest.approx({"": 0.0, "norm": 0.0, "first": 0.002, "last": 0.01}, rel=1e-2)


def test_a_step_that_was_dropped_is_left_as_it_is() -> None:
    model = Shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trust, plain = TrustRatios(model, optimizer), copy.deepcopy(model)
    torch.manual_seed(2)
    step(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    torch.manual_seed(2)
    trust.enter()
    step(model, optimizer)
    trust.drop()
    trust.leave(0.01)
    torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=0, atol=0)


class Product(nn.Module):
    """What is learned beside a fixed layer: a product of two thin matrices, as in LoRA."""

    def __init__(self, second: float = 0.0) -> None:
        super().__init__()
        self.fixed = nn.Linear(8, 3).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.down.weight)
        nn.init.constant_(self.up.weight, second)

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(x) + self.up(self.down(x))


def held(model: nn.Module, steps: int) -> list[float]:
    """The size of the first factor after each step, from the same batches."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trust, sizes = TrustRatios(model, optimizer), list[float]()
    for _ in range(steps):
        trust.enter()
        step(model, optimizer)
        trust.leave(0.01)
        sizes.append(float(model.get_parameter("down.weight").detach().norm()))
    return sizes


def test_a_product_of_two_zeros_gets_away_from_its_saddle_with_the_model_hardly_changed() -> None:
    model, x = Product(), torch.randn(64, 8)
    before = model(x).detach()
    first, second, *_ = held(model, 2)
    assert 0.0 < first < 0.2 * LEAST * 2**0.5
    assert second != first
    assert float((model(x) - before).detach().norm()) < 0.01 * float(before.norm())
    assert held(Product(), 1) == [first], "drawn by a generator of its own, so alike on all ranks"


def test_zeros_that_get_a_gradient_are_not_drawn() -> None:
    (first,) = held(Product(second=1.0), 1)
    assert first == pytest.approx(0.01 * LEAST * 2**0.5, rel=1e-4)


@pytest.mark.parametrize("what", ["without a learning rate", "left out of the loss"])
def test_zeros_that_no_step_is_to_move_stay_zeros(what: str) -> None:
    model = Product()
    both = [*model.down.parameters(), *model.up.parameters()]
    optimizer = torch.optim.SGD(both, lr=0.0 if what == "without a learning rate" else 0.1)
    trust = TrustRatios(model, optimizer)
    trust.enter()
    if what == "without a learning rate":
        step(model, optimizer)
    else:
        optimizer.step()
    trust.leave(0.01)
    assert not flat(both).any()
