"""The hooks leave no trace: gone after close(), never raising, and the training the same bit for bit."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from stepguard.collect.collector import Collector

Watch = Callable[..., Any]

TABLES = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"),
)


def hooks(model: nn.Module) -> int:
    """How many hooks there are on all modules, parameters and in torch's own tables."""
    on_modules = sum(len(getattr(module, table)) for module in model.modules() for table in TABLES)
    on_parameters = sum(len(p._backward_hooks or ()) for p in model.parameters())
    return on_modules + on_parameters + len(torch.nn.modules.module._global_forward_hooks)


class Net(nn.Module):
    """A bit of everything: functions in place, dropout, batch norm, a recurrent layer, a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.lstm = nn.LSTM(36, 12, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(96, 16), nn.Linear(16, 96)
        self.fc2.weight = nn.Parameter(self.fc1.weight.t().detach().clone())
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.act(self.norm(self.conv(x)))).flatten(2)
        hidden, _ = self.lstm(hidden)
        hidden = hidden.flatten(1)
        inner = F.relu(self.fc1(hidden), inplace=True)
        return self.head(hidden + F.dropout(torch.tanh(self.fc2(inner)), 0.1, self.training))


def trained(steps: int, *, watched: bool, kind: type[torch.optim.Optimizer]) -> tuple[Any, ...]:
    """Weights, buffers, losses and the state of the generator after some steps."""
    model = Net()
    optimizer = kind(model.parameters(), lr=1e-2)
    faults: list[Exception] = []
    collector = Collector(model, optimizer, None, faults.append) if watched else None
    data = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    losses = []
    for step in range(steps):
        x, y = torch.randn(4, 1, 8, 8, generator=data), torch.randint(5, (4,), generator=data)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if collector is not None:
            sampled = step % 3 != 1
            if sampled:
                collector.remember(step)
            collector.frame(step, loss.detach(), sampled=sampled)
        optimizer.step()
        losses.append(loss.item())
    if collector is not None:
        collector.close()
        assert hooks(model) == 0
    assert faults == []
    return dict(model.state_dict()), losses, torch.get_rng_state()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_training_is_the_same_bit_for_bit(kind: type[torch.optim.Optimizer]) -> None:
    weights, losses, generator = trained(20, watched=True, kind=kind)
    bare_weights, bare_losses, bare_generator = trained(20, watched=False, kind=kind)
    assert losses == bare_losses
    assert torch.equal(generator, bare_generator)
    assert all(torch.equal(weights[name], bare_weights[name]) for name in bare_weights)


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8)


def test_the_hooks_go_with_close(watching: Watch) -> None:
    model = Net()
    watched = watching(model)
    assert hooks(model) > 0
    watched.train(images())
    watched.collector.close()
    assert hooks(model) == 0
    watched.collector.close()
    model(images())
    assert "act.std" not in watched.frame().vectors


def test_hooks_of_others_stay(watching: Watch) -> None:
    model = Net()
    calls: list[int] = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    model.register_forward_pre_hook(lambda *_: calls.append(2))
    watched = watching(model)
    watched.train(images())
    watched.collector.close()
    assert hooks(model) == 2
    model(images())
    assert calls == [2, 1, 2, 1]


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("the user's own")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_after_an_exception_in_a_forward_pass_all_goes_on(watching: Watch, place: int) -> None:
    layers: list[nn.Module] = [nn.Linear(4, 4), nn.Linear(4, 4)]
    layers.insert(place, Broken())
    model = nn.Sequential(*layers)
    watched = watching(model)
    with pytest.raises(ArithmeticError):
        model(torch.randn(3, 4))
    model[place] = nn.Identity()
    frame = watched.train(torch.randn(3, 4))
    names = [str(i) for i in range(3) if i != place]
    assert all(watched.read(frame, "act.std", name) is not None for name in names)
    watched.collector.close()
    assert hooks(model) == 0
    assert watched.faults == []


def test_after_an_exception_in_a_backward_pass_or_a_step_the_hooks_still_go(watching: Watch) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Tensor:
            raise ArithmeticError

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    watched = watching(model)
    with pytest.raises(ArithmeticError):
        watched.train(torch.randn(3, 4), loss=lambda y: Fails.apply(y).sum())
    assert watched.read(watched.train(torch.randn(3, 4)), "act.std", "0") is not None
    model[2].weight.grad = None
    watched.optimizer.param_groups[0]["lr"] = None
    with pytest.raises(TypeError):
        watched.train(torch.randn(3, 4))
    watched.collector.close()
    assert hooks(model) == 0


class Treacherous(torch.Tensor):
    """Floating and dense, and no statistic can be taken of it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.detach or getattr(func, "__name__", "") in (
            "detach",
            "aminmax",
            "amin",
            "amax",
        ):
            raise ArithmeticError("no statistics here")
        return super().__torch_function__(func, types, args, kwargs or {})


class Treachery(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).as_subclass(Treacherous)


class Trust(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.as_subclass(Tensor)


def test_a_statistic_that_fails_does_not_stop_the_training(watching: Watch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Treachery(), Trust(), nn.Linear(4, 1))
    watched = watching(model)
    for _ in range(3):
        before = model[0].weight.detach().clone()
        frame = watched.train(torch.randn(3, 4))
        assert not torch.equal(before, model[0].weight)
        assert watched.all(frame, "act", "1") == {}
        for name in ("0", "3"):
            assert watched.read(frame, "act.std", name) is not None
        assert len(watched.all(frame, "grad", "1")) == 5
    assert watched.faults
    assert all(isinstance(fault, ArithmeticError) for fault in watched.faults)


class Traced(torch.autograd.Function):
    """Leaves a mark in the graph that lives as long as the graph does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mark: object) -> Tensor:
        ctx.mark = mark
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class Mark:
    pass


@pytest.mark.parametrize("function", [F.relu, torch.sigmoid])
def test_no_graph_is_held_from_step_to_step(watching: Watch, function: Callable[[Tensor], Tensor]) -> None:
    """And so no output: the memory of a training is its activations."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor, mark: Mark) -> Tensor:
            return self.last(function(Traced.apply(self.first(x), mark)))

    watched = watching(Model())
    for sampled in (True, True, False):
        mark = Mark()
        alive = weakref.ref(mark)
        loss = watched.model(torch.randn(3, 4), mark).sum()
        del mark
        assert alive() is not None
        loss.backward()
        watched.frame(loss.detach(), sampled=sampled)
        del loss
        gc.collect()
        assert alive() is None


def test_the_model_may_be_copied_while_it_is_watched(watching: Watch) -> None:
    """The copy, for an average of the weights, say, is not watched."""
    watched = watching(model := Net())
    watched.train(images())
    average = copy.deepcopy(model)
    average(images() * 1000)
    model(x := images())
    frame = watched.frame()
    assert frame.scalars["input.absmax"] == x.abs().max()
    assert watched.faults == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_model_may_be_traced_while_it_is_watched(watching: Watch) -> None:
    """What `torch.jit.trace` records is the model alone."""
    watched = watching(model := nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    watched.train(x := torch.randn(3, 4))
    model(x)
    traced = torch.jit.trace(model, 1000 * x)
    assert "aminmax" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), model(x))
    assert watched.frame().scalars["input.absmax"] == x.abs().max()
    assert watched.faults == []


def of_each_example(model: nn.Module, x: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of each example, as they are made by the transforms of torch."""

    def loss(own: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, own, (example[None],)).square().mean()

    return vmap(grad(loss), in_dims=(None, 0))(weights, x)


@pytest.mark.parametrize("sampled", [True, False], ids=["measured", "not measured"])
def test_calls_inside_of_a_transform_are_left_alone(watching: Watch, *, sampled: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    watched, x = watching(model), torch.randn(16, 4)
    watched.train(x)
    watched.collector.active = sampled
    weights = {name: each.detach() for name, each in model.named_parameters()}
    for name, grads in of_each_example(model, x, weights).items():
        model.get_parameter(name).grad = grads.mean(0)
    frame = watched.frame(torch.tensor(1.0 if sampled else torch.nan), sampled=sampled)
    assert watched.faults == []
    assert watched.all(frame, "act") == {}
    assert (watched.read(frame, "grad.norm") or 0) > 0
    watched.collector.active = True
    model(x)
    of_each_example(model, x + 100, weights)
    assert watched.outputs(watched.frame()) == watched.outputs(watched.see(x)), "calls beside it are measured"


def test_functional_calls_outside_of_a_transform_are_measured(watching: Watch) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    watched, x = watching(model), torch.randn(16, 4)
    functional_call(model, dict(model.named_parameters()), (x,))
    assert watched.all(watched.frame(), "act") == watched.all(watched.see(x), "act") != {}


def test_the_model_may_be_saved_whole_while_it_is_watched(watching: Watch) -> None:
    watched = watching(model := nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    watched.train(torch.randn(3, 4))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded[0].weight, model[0].weight)
    loaded(torch.randn(3, 4))


def test_the_state_of_the_model_is_its_own(watching: Watch) -> None:
    model = Net()
    names = list(model.state_dict())
    watched = watching(model)
    watched.train(images())
    assert list(model.state_dict()) == names
    assert not any(p._backward_hooks for p in model.parameters())


def test_gradients_are_left_as_they_are(watching: Watch) -> None:
    watched = watching(model := Net())
    loss = watched.backward(images())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    copies = {name: grad.clone() for name, grad in gradients.items()}
    watched.frame(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert torch.equal(parameter.grad, copies[name])


def test_other_collectors_of_the_same_model_do_not_mind(watching: Watch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    one, two = watching(model), watching(model)
    model(torch.randn(3, 4))
    first, second = one.frame(), two.frame()
    assert one.all(first, "act") == two.all(second, "act") != {}
    one.collector.close()
    model(torch.randn(3, 4))
    assert one.all(one.frame(), "act") == {} != two.all(two.frame(), "act")
