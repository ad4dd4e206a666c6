from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepguard.recover.remedies import lsuv


def never(fault: Exception) -> None:
    raise fault


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each linear and convolutional layer gives at its first call in the training's own forward pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        if torch.is_grad_enabled():
            found.setdefault(name, output.detach())

    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: keep(name, out))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def std(x: Tensor) -> float:
    return float(x.detach().std(correction=0))


def a_convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2),
        nn.Flatten(),
        nn.Linear(200, 20),
        nn.Tanh(),
        nn.Linear(20, 10),
    )


def test_every_layer_has_mean_0_and_std_1_on_the_first_batch() -> None:
    model = a_convnet()
    x = 40 + 7 * torch.randn(32, 1, 16, 16)
    lsuv(model, never)
    found = outputs(model, x)
    assert len(found) == 5
    for name, output in found.items():
        assert float(output.mean()) == pytest.approx(0, abs=1e-4), name
        assert std(output) == pytest.approx(1, abs=1e-4), name


def test_behind_sigmoids_every_unit_still_tells_samples_apart() -> None:
    """By whole layers the spread would be that of the units' offsets, and the samples' own die out."""
    torch.manual_seed(0)
    layers = [part for _ in range(10) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(20, 32), *layers, nn.Linear(32, 4))
    lsuv(model, never)
    last = list(outputs(model, torch.randn(64, 20)).values())[-1]
    assert last.std(0, correction=0) == pytest.approx(torch.ones(4), abs=1e-3)
    assert last.mean(0) == pytest.approx(torch.zeros(4), abs=1e-3)


def test_a_layer_says_the_same_to_all_samples_of_a_batch_of_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    lsuv(model, never)
    for output in outputs(model, torch.randn(1, 20)).values():
        assert std(output) == pytest.approx(1, abs=1e-4)


def test_it_is_done_once() -> None:
    model = a_convnet()
    lsuv(model, never)
    model(torch.randn(8, 1, 16, 16))
    before = copy.deepcopy(model.state_dict())
    model(100 * torch.randn(8, 1, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_in_evaluation_mode_are_passed_by() -> None:
    model = a_convnet()
    lsuv(model, never)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    model(100 * torch.randn(8, 1, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.train()
    found = outputs(model, torch.randn(8, 1, 16, 16))
    assert all(std(output) == pytest.approx(1, abs=1e-4) for output in found.values())


def test_a_layer_without_bias_has_std_1() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 5, bias=False))
    lsuv(model, never)
    for output in outputs(model, 3 + torch.randn(64, 20)).values():
        assert std(output) == pytest.approx(1, abs=1e-4)


class Shared(nn.Module):
    """One linear layer, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.layer(x))
        return self.head(x)


def test_a_shared_layer_is_rescaled_at_its_first_call() -> None:
    torch.manual_seed(0)
    model = Shared()
    lsuv(model, never)
    found = outputs(model, 5 * torch.randn(64, 20))
    assert std(found["layer"]) == pytest.approx(1, abs=1e-4)
    assert std(found["head"]) == pytest.approx(1, abs=1e-4)


def a_noisy_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(40, 40),
        nn.BatchNorm1d(40),
    )


def test_running_statistics_are_as_if_nothing_had_happened() -> None:
    x = 9 + torch.randn(64, 20)
    model, bare = a_noisy_model(), a_noisy_model()
    lsuv(model, never)
    torch.manual_seed(7)
    model(x)
    bare.load_state_dict({**bare.state_dict(), **dict(model.named_parameters())})
    torch.manual_seed(7)
    bare(x)
    for (name, buffer), expected in zip(model.named_buffers(), bare.buffers(), strict=True):
        assert torch.equal(buffer, expected), name


class Dice(nn.Module):
    """Draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)
        self.drawn: list[tuple[float, float, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return self.layer(x)


def test_generators_are_as_if_nothing_had_happened() -> None:
    model = Dice()
    lsuv(model, never)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    for _ in range(2):
        model(torch.ones(4, 20))
    extra, first, second = model.drawn
    assert extra == first
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_forward_pass_that_fails_without_gradients_is_told_and_the_training_goes_on() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            (slope,) = torch.autograd.grad(y.sum(), self.layer.weight, create_graph=True)
            return y + slope.mean()

    model, told = Penalised(), list[Exception]()
    lsuv(model, told.append)
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
    assert [type(fault) for fault in told] == [RuntimeError]
    assert not model.layer._forward_hooks


def test_under_dropout_the_batch_of_the_training_itself_has_std_1() -> None:
    model = a_noisy_model()
    lsuv(model, never)
    torch.manual_seed(7)
    for name, output in outputs(model, torch.randn(64, 20)).items():
        assert std(output) == pytest.approx(1, abs=1e-4), name


def test_what_cannot_be_rescaled_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    lsuv(model, never)
    before = copy.deepcopy(model.state_dict())
    model(torch.zeros(1, 4))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_arguments_by_name_and_outputs_of_several_parts_are_fine() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.layer(x)}

    model = Two()
    lsuv(model, never)
    y = model(x=50 * torch.randn(32, 6))["y"]
    assert std(y) == pytest.approx(1, abs=1e-4)


def test_gradients_flow_after_it_as_before() -> None:
    model = a_convnet()
    lsuv(model, never)
    model(torch.randn(8, 1, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in model.parameters())
