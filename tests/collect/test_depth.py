"""The order of layers where a module has parameters of its own beside what it holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepguard import watch
from stepguard.recover.recovery import Observation


def depth(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the layers, in the order in which the guard keeps them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: list[Observation] = []
    guard = watch(model, optimizer, run=None, console=None, on_error="raise", subscribers=[seen.append])
    loss = model(x).square().mean()
    loss.backward()
    guard.step(loss)
    guard.close()
    return [layer.name for layer in seen[0].layers]


class Positions(nn.Module):
    """Tokens, an embedding of their positions on the model itself, and a residual block with a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 8), nn.Parameter(torch.randn(5, 8))
        self.block, self.norm, self.head = Scaled(), nn.LayerNorm(8), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.tokens(x) + self.places)))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner, self.outer = nn.Parameter(torch.ones(8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.outer(torch.relu(self.inner(x)))


class Classes(nn.Module):
    """Ends with a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.classes


class Tempered(nn.Module):
    """Has a parameter that the loss uses, and not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.temperature = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.body(x), dim=1)


class Wiped(nn.Module):
    """What comes out does not depend on anything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.own = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(self.first(x)) + self.own).detach().requires_grad_()


class Experts(nn.Module):
    """Of three experts the first batch is sent to the second alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.experts[1](self.stem(x)))


def test_what_the_first_batch_does_not_reach_stands_behind_what_was_registered_before_it() -> None:
    experts = [f"experts.{i}.{j}" for i in range(3) for j in range(2)]
    assert depth(Experts(), torch.randn(4, 6)) == ["stem", *experts, "head"]


def test_positions_stand_behind_the_tokens_and_a_scale_behind_what_it_scales() -> None:
    names = depth(Positions(), torch.randint(7, (4, 5)))
    assert [name for name in names if not name.endswith(".input")] == [
        "tokens",
        "Positions",
        "block.inner",
        "block.outer",
        "block",
        "norm",
        "head",
    ]


def test_parameters_that_work_at_the_end_stay_there() -> None:
    assert depth(Classes(), torch.randn(4, 6))[-1] == "Classes"


def test_a_parameter_that_only_the_loss_uses_stays_at_the_end() -> None:
    assert depth(Tempered(), torch.randn(4, 6))[-1] == "Tempered"


def test_a_model_without_a_graph_keeps_the_order_of_its_calls() -> None:
    assert depth(Wiped(), torch.randn(4, 6)) == ["first", "last", "Wiped"]


def test_a_model_inside_a_wrapper_is_ordered_alike() -> None:
    inner = depth(Positions(), torch.randint(7, (4, 5)))
    wrapped = depth(nn.Sequential(Positions()), torch.randint(7, (4, 5)))
    assert [name.removeprefix("0.") for name in wrapped] == [n if n != "Positions" else "0" for n in inner]
