from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.collect.gathered import SPREAD, Gathered
from stepguard.collect.optimizer_state import SecondMoments
from stepguard.collect.sampling import whole

Maker = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, tuple[Maker, str]] = {
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.01), "exp_avg_sq"),
    "Adam, fused": (lambda p: torch.optim.Adam(p, lr=0.01, fused=True), "exp_avg_sq"),
    "AMSGrad": (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True), "max_exp_avg_sq"),
    "AdamW": (lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95)), "exp_avg_sq"),
    "NAdam": (lambda p: torch.optim.NAdam(p, lr=0.01), "exp_avg_sq"),
    "RAdam": (lambda p: torch.optim.RAdam(p, lr=0.01), "exp_avg_sq"),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, lr=0.01), "square_avg"),
    "Adadelta": (lambda p: torch.optim.Adadelta(p, lr=0.01), "square_avg"),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.01), "sum"),
}


class Ratios(NamedTuple):
    """Which parameters have a ratio, and the ratios."""

    places: list[int]
    values: np.ndarray


def second_moment_ratios(parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> Ratios | None:
    wide = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32
    moments = SecondMoments(wide)
    parts = moments.gather(parameters, optimizer)
    if not parts:
        return None
    grads = [whole(parameters[i].grad) for i in moments.places]
    room = Gathered(grads, wide)
    room.gather(grads)
    values = moments.compare(room.buffer.cpu().numpy(), *(part.cpu().numpy() for part in parts))
    return Ratios(moments.places, values)


def trained(make: Maker, steps: int, size: int = 6) -> tuple[list[nn.Parameter], Optimizer]:
    """Parameters with an optimizer after some steps, and with fresh gradients that grew threefold."""
    torch.manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(size, 5)),
        nn.Parameter(torch.randn(7)),
        nn.Parameter(torch.ones(())),
    ]
    optimizer = make(parameters)
    for step in range(steps + 1):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * (3 if step == steps else 1)
        if step < steps:
            optimizer.step()
    return parameters, optimizer


def plain(parameters: list[nn.Parameter], optimizer: Optimizer, buffer: str) -> list[float]:
    """The ratio by what the optimizer's own step makes of the buffer."""
    grads = [parameter.grad.double().clone() for parameter in parameters if parameter.grad is not None]
    after, parameters = copy.deepcopy((optimizer, parameters))
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.to(parameter)
    after.step()
    means: list[float] = []
    for parameter, grad in zip(parameters, grads, strict=True):
        state = after.state[parameter]
        group = next(g for g in after.param_groups if any(p is parameter for p in g["params"]))
        second = state[buffer].double()
        if buffer.endswith("exp_avg_sq"):
            second = second / (1 - group["betas"][1] ** float(state["step"]))
        means.append(float((grad**2 / second).mean()))
    return means


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_it_is_the_plain_mean_of_what_the_step_divides_by(name: str, steps: int) -> None:
    make, buffer = OPTIMIZERS[name]
    parameters, optimizer = trained(make, steps)
    found = second_moment_ratios(parameters, optimizer)
    assert found is not None
    assert found.places == [0, 1, 2]
    assert found.values.tolist() == pytest.approx(plain(parameters, optimizer, buffer), rel=1e-4)


def test_steady_gradients_give_about_one_and_a_jump_more() -> None:
    parameters, optimizer = trained(lambda p: torch.optim.AdamW(p, lr=0.0, betas=(0.9, 0.95)), 300, size=800)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    steady = second_moment_ratios(parameters, optimizer)
    for parameter in parameters:
        parameter.grad = 5 * torch.randn_like(parameter)
    jump = second_moment_ratios(parameters, optimizer)
    assert steady is not None and jump is not None
    assert float(steady.values[0]) == pytest.approx(1.0, abs=0.15)
    assert float(jump.values[0]) > 6


@pytest.mark.parametrize("layout", [lambda t: t, lambda t: t.t().contiguous().t()], ids=["rows", "columns"])
def test_large_parameters_are_sampled_evenly(layout: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    parameter = nn.Parameter(layout(torch.randn(300, 401)))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    for _ in range(3):
        parameter.grad = layout(torch.randn(300, 401))
        optimizer.step()
    found = second_moment_ratios([parameter], optimizer)
    assert found is not None
    assert parameter.numel() > 20 * SPREAD
    (whole,) = plain([parameter], optimizer, "exp_avg_sq")
    assert float(found.values[0]) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adamax(p, lr=0.1),
        lambda p: torch.optim.Rprop(p, lr=0.1),
    ],
    ids=["SGD", "Adamax", "Rprop"],
)
def test_optimizers_without_a_second_moment_give_nothing(make: Maker) -> None:
    assert second_moment_ratios(*trained(make, 3)) is None


def test_before_the_first_step_there_is_nothing() -> None:
    assert second_moment_ratios(*trained(torch.optim.Adam, 0)) is None


def test_what_cannot_be_compared_is_left_out() -> None:
    parameters, optimizer = trained(lambda p: torch.optim.Adam(p, lr=0.01), 3)
    strangers = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(0))]
    parameters[1].grad = None
    found = second_moment_ratios([*strangers, *parameters], optimizer)
    assert found is not None
    assert found.places == [2, 4]
    optimizer.state[parameters[0]]["exp_avg_sq"] = torch.ones(6)
    optimizer.state[parameters[2]]["exp_avg_sq"] = torch.ones((), dtype=torch.uint8)
    assert second_moment_ratios(parameters, optimizer) is None


def test_sparse_gradients_are_left_out() -> None:
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    assert second_moment_ratios([table.weight], optimizer) is None


def test_a_buffer_of_an_unknown_optimizer_is_taken_as_it_is() -> None:
    class Own(Optimizer):
        """Keeps a second moment, and says nothing of its decay."""

        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["exp_avg_sq"] = torch.full_like(parameter, 4.0)

    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([2.0, 4.0, 0.0])
    optimizer = Own([parameter], {})
    optimizer.step()
    found = second_moment_ratios([parameter], optimizer)
    assert found is not None
    assert found.values.tolist() == pytest.approx([(1 + 4 + 0) / 3])


def test_elements_that_never_had_a_gradient_add_nothing() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([parameter])
    for _ in range(3):
        parameter.grad = torch.tensor([1.0, 1.0, 0.0, 0.0])
        optimizer.step()
    found = second_moment_ratios([parameter], optimizer)
    assert found is not None
    assert found.values.tolist() == pytest.approx([0.5], rel=1e-4)


def test_half_precision_and_complex_parameters() -> None:
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.complex64, torch.float64):
        parameter = nn.Parameter(torch.randn(20, dtype=dtype))
        optimizer = torch.optim.Adam([parameter])
        for _ in range(3):
            parameter.grad = torch.randn(20, dtype=dtype)
            optimizer.step()
        found = second_moment_ratios([parameter], optimizer)
        assert found is not None
        assert 0.3 < float(found.values[0]) < 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only there step counts lie on the device")
def test_step_counts_on_the_device_give_the_same() -> None:
    values = torch.randn(50, device="cuda")
    found: list[float] = []
    for capturable in (False, True):
        parameter = nn.Parameter(values.clone())
        optimizer = torch.optim.Adam([parameter], capturable=capturable)
        for step in range(4):
            parameter.grad = values * (step + 1)
            optimizer.step()
        ratios = second_moment_ratios([parameter], optimizer)
        assert ratios is not None
        found.append(float(ratios.values[0]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
