from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.errors import TrainingHalted
from stepguard.recover.gate import Gate

STEPS = 5


class Kind(NamedTuple):
    """An optimizer with its options."""

    make: Callable[..., Optimizer]
    options: dict[str, Any]

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.make.__name__}({options})"


def _variants(make: Callable[..., Optimizer], *options: dict[str, Any]) -> list[Kind]:
    return [Kind(make, each) for each in options]


FOREACH, FUSED = {"foreach": True}, {"fused": True}
KINDS = [
    *_variants(torch.optim.SGD, {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    *_variants(torch.optim.SGD, {"weight_decay": 0.1}, {"momentum": 0.9, "dampening": 0.1, "maximize": True}),
    *_variants(
        torch.optim.SGD, {"momentum": 0.9, **FOREACH}, {"momentum": 0.9, "weight_decay": 0.1, **FUSED}
    ),
    *_variants(torch.optim.Adam, {}, {"amsgrad": True, "weight_decay": 0.1}, FOREACH, FUSED),
    *_variants(torch.optim.AdamW, {}, {"amsgrad": True}, FOREACH, FUSED),
    *_variants(torch.optim.Adamax, {}, FOREACH),
    *_variants(torch.optim.NAdam, {}, {"decoupled_weight_decay": True, "weight_decay": 0.1}, FOREACH),
    *_variants(torch.optim.RAdam, {}, {"weight_decay": 0.1}, FOREACH),
    *_variants(torch.optim.Adagrad, {}, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}, FOREACH, FUSED),
    *_variants(torch.optim.Adadelta, {}, {"weight_decay": 0.1}, FOREACH),
    *_variants(torch.optim.RMSprop, {}, {"centered": True, "momentum": 0.9}, FOREACH),
    *_variants(torch.optim.ASGD, {}, {"t0": 1.0, "weight_decay": 0.1}, FOREACH),
    *_variants(torch.optim.Rprop, {}, FOREACH),
    *_variants(torch.optim.Adafactor, {}, {"weight_decay": 0.1}, FOREACH),
    *([Kind(torch.optim.Muon, {})] if hasattr(torch.optim, "Muon") else []),
    Kind(torch.optim.SparseAdam, {}),
]
CLOSURES = [
    *KINDS,
    *_variants(torch.optim.LBFGS, {"max_iter": 4}, {"max_iter": 4, "line_search_fn": "strong_wolfe"}),
]


class Training:
    """A small real training, deterministic from its first line on."""

    def __init__(self, kind: Kind) -> None:
        torch.manual_seed(3)
        self.sparse = kind.make is torch.optim.SparseAdam
        first = nn.Embedding(6, 5, sparse=True) if self.sparse else nn.Linear(6, 5, bias=False)
        self.model = (
            nn.Sequential(first) if self.sparse else nn.Sequential(first, nn.Tanh(), nn.Linear(5, 4, False))
        )
        self.optimizer = kind.make(self.model.parameters(), lr=0.02, **kind.options)
        self.batches = [torch.randint(6, (4,)) if self.sparse else torch.randn(8, 6) for _ in range(STEPS)]

    def backward(self, step: int) -> Tensor:
        self.optimizer.zero_grad()
        loss = (self.model(self.batches[step]) - 1).square().mean()
        loss.backward()
        return loss

    def step(self, step: int, closure: str) -> object:
        if closure == "none":
            self.backward(step)
            return self.optimizer.step()
        if closure == "positional":
            return self.optimizer.step(lambda: self.backward(step))
        return self.optimizer.step(closure=lambda: self.backward(step))

    def state(self) -> Any:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def grads(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.model.parameters()]


def same(left: Any, right: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(left, Tensor):
        return (
            left.dtype == right.dtype and left.detach().numpy().tobytes() == right.detach().numpy().tobytes()
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_every_optimizer_of_torch_is_tried() -> None:
    there = {value for value in vars(torch.optim).values() if isinstance(value, type)}
    assert {kind.make for kind in CLOSURES} == there - {Optimizer}


WAYS = [
    *[pytest.param(kind, "none", id=f"{kind}") for kind in KINDS],
    *[pytest.param(kind, "positional", id=f"{kind} closure") for kind in CLOSURES],
    pytest.param(KINDS[1], "keyword", id="SGD closure=..."),
    pytest.param(CLOSURES[-1], "keyword", id="LBFGS closure=..."),
]


@pytest.mark.parametrize(("kind", "closure"), WAYS)
def test_a_skipped_step_touches_nothing_and_gives_the_gradients_back(kind: Kind, closure: str) -> None:
    training = Training(kind)
    seen: list[Tensor | None] = []
    now, skipped = 0, (0, 3)

    def skips(_loss: Tensor | None) -> bool:
        seen[:] = training.grads()
        return now in skipped

    Gate(training.optimizer, skips)
    for now in range(STEPS):
        before = training.state()
        training.step(now, closure)
        assert same(before, training.state()) == (now in skipped), f"step {now}"
        if now in skipped:
            assert all(grad is not None for grad in seen)
            assert all(after is kept for after, kept in zip(training.grads(), seen, strict=True))


@pytest.mark.parametrize(("kind", "closure"), WAYS)
def test_a_training_with_skips_is_the_one_without_those_batches(kind: Kind, closure: str) -> None:
    skipped = (0, 2, 3)
    guarded, bare = Training(kind), Training(kind)
    now = 0
    Gate(guarded.optimizer, lambda _loss: now in skipped)
    for now in range(STEPS):
        guarded.step(now, closure)
        if now not in skipped:
            bare.step(now, closure)
    assert same(guarded.state(), bare.state())


@pytest.mark.parametrize(("kind", "closure"), WAYS)
def test_a_gate_that_lets_all_through_changes_nothing(kind: Kind, closure: str) -> None:
    guarded, bare = Training(kind), Training(kind)
    losses: list[Tensor | None] = []

    def passes(loss: Tensor | None) -> bool:
        losses.append(loss)
        return False

    gate = Gate(guarded.optimizer, passes)
    for step in range(STEPS):
        told, plain = guarded.step(step, closure), bare.step(step, closure)
        assert same(told, plain)
        if closure != "none":
            assert same(losses[-1], told), "the gate is asked with the closure's first loss"
    assert same(guarded.state(), bare.state())
    assert gate.passed == len(losses) == STEPS
    assert closure != "none" or losses == [None] * STEPS


@pytest.mark.parametrize(("kind", "closure"), WAYS)
def test_what_is_raised_at_the_gate_leaves_the_step_before_anything_is_touched(
    kind: Kind, closure: str
) -> None:
    training = Training(kind)
    training.step(0, closure)
    before = training.state()

    def halts(_loss: Tensor | None) -> bool:
        raise TrainingHalted("enough", step=1, rule="r")

    Gate(training.optimizer, halts)
    with pytest.raises(TrainingHalted, match="enough"):
        training.step(1, closure)
    assert same(before, training.state())


def test_a_parameter_without_gradient_has_none_afterwards() -> None:
    training = Training(KINDS[1])
    training.model[0].weight.requires_grad_(False)
    Gate(training.optimizer, lambda _loss: True)
    training.step(0, "none")
    assert training.model[0].weight.grad is None
    assert training.model[2].weight.grad is not None


def test_several_groups_are_all_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    Gate(optimizer, lambda _loss: True)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    assert same(before, model.state_dict())


def test_a_closed_gate_asks_nobody_and_leaves_no_hook() -> None:
    training = Training(KINDS[1])
    gate = Gate(training.optimizer, lambda _loss: True)
    training.step(0, "none")
    gate.close()
    before = training.state()
    training.step(1, "none")
    assert not same(before, training.state())
    assert gate.passed == 1
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks


def test_two_optimizers_have_their_own_gates() -> None:
    one, other = Training(KINDS[1]), Training(KINDS[1])
    Gate(one.optimizer, lambda _loss: True)
    Gate(other.optimizer, lambda _loss: False)
    before = one.state(), other.state()
    one.step(0, "none")
    other.step(0, "none")
    assert same(before[0], one.state())
    assert not same(before[1], other.state())
