from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepguard.collect.collector import Collector
from stepguard.signals import Frame, Layer


class Emit(nn.Module):
    """Gives what it is told to give, just as it is: memory layout, number format and kind."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.output = output

    def forward(self, *_: Any) -> Any:
        return self.output


class EmitChannels(nn.Conv2d):
    """The same for a convolution, whose units lie on dimension 1."""

    def __init__(self, output: Any = None) -> None:
        super().__init__(1, 1, 1)
        self.output = output

    def forward(self, *_: Any) -> Any:
        return self.output


class Watching:
    """A model under a collector, stepped as the guard steps it."""

    def __init__(self, model: nn.Module, optimizer: Any = None, choice: Any = None, asked: Any = ()) -> None:
        self.model = model
        self.faults: list[Exception] = []
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
        self.collector = Collector(model, self.optimizer, choice, self.faults.append, asked)
        self.steps = 0

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.collector.layers

    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def frame(self, loss: Tensor | None = None, *, sampled: bool = True) -> Frame:
        """The frame at a step boundary."""
        if sampled:
            self.collector.remember(self.steps)
        frame = self.collector.frame(self.steps, loss, sampled=sampled)
        self.steps += 1
        return frame

    def see(self, *given: Any) -> Frame:
        """A forward pass and its frame, without gradients."""
        self.model(*given)
        return self.frame()

    def backward(self, *given: Any, loss: Callable[[Any], Tensor] = lambda y: y.square().mean()) -> Tensor:
        """A forward and a backward pass from the mean square of the output, or from another loss."""
        self.optimizer.zero_grad()
        value = loss(self.model(*given))
        value.backward()
        return value.detach()

    def train(self, *given: Any, sampled: bool = True, **loss: Callable[[Any], Tensor]) -> Frame:
        """A whole step of training."""
        value = self.backward(*given, **loss)
        frame = self.frame(value, sampled=sampled)
        self.optimizer.step()
        return frame

    def read(self, frame: Frame, signal: str, name: str | None = None) -> float | None:
        """The number of a layer, of the first unless it is named; None where nothing was measured."""
        place = 0 if name is None else self.names().index(name)
        vector = frame.vectors.get(signal)
        return float(vector.values[place]) if vector is not None and vector.known[place] else None

    def all(self, frame: Frame, kind: str, name: str | None = None) -> dict[str, float]:
        """Every signal of a kind ("act", "grad", "weight") that was measured of a layer."""
        names = [signal for signal in frame.vectors if signal.startswith(f"{kind}.")]
        found = {signal: self.read(frame, signal, name) for signal in names}
        return {signal: value for signal, value in found.items() if value is not None}

    def outputs(self, frame: Frame, name: str | None = None) -> dict[str, float]:
        """What `defined` tells of the output of a layer, as measured."""
        found = self.all(frame, "act", name)
        return {k: v for k, v in found.items() if k not in ("act.variation", "act.saturated")}


def numbers(tensor: Tensor) -> np.ndarray:
    """The numbers in double precision; of complex ones both parts, in a last dimension."""
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to(torch.float64).numpy()


def definitions(tensor: Tensor, unit_dim: int = -1) -> dict[str, Any]:
    """The signals of one finite output from all its elements, by their definitions in numpy.

    Without act.variation and act.saturated, which have tests of their own.
    """
    x = numbers(tensor)
    shape = tensor.shape or (1,)
    size = np.abs(x)
    rms = np.sqrt(np.mean(x**2))
    units = np.moveaxis(size.reshape(*shape, -1), unit_dim % len(shape), 0)
    units = units.reshape(len(units), -1)
    with np.errstate(over="ignore"):
        mean, std, largest = (float(np.float32(v)) for v in (x.mean(), x.std(), size.max()))
        root = float(np.float32(rms))
    near = {"rel": 1e-4, "abs": 1e-6 * root if np.isfinite(root) else 0}
    return {
        "act.mean": pytest.approx(mean, **near),
        "act.std": pytest.approx(std, **near),
        "act.rms": pytest.approx(root, rel=1e-4, abs=0),
        "act.absmax": largest,
        "act.near_zero": pytest.approx(np.mean(size < 0.4)),
        "act.tiny": pytest.approx(np.mean(size <= 0.01 * rms)),
        "act.dead": pytest.approx(np.mean((units == 0).all(1))),
        "act.dormant": pytest.approx(np.mean(units.mean(1) <= 0.025 * units.mean())),
        "act.nonfinite": 0,
    }


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def emit() -> Callable[..., nn.Module]:
    """Make a layer that gives one output. Its units lie last or, with `channels`, on dimension 1."""

    def make(output: Any = None, *, channels: bool = False) -> nn.Module:
        return EmitChannels(output) if channels else Emit(output)

    return make


@pytest.fixture(scope="session")
def defined() -> Callable[..., dict[str, Any]]:
    """What each signal of an output is by its definition."""
    return definitions


@pytest.fixture(scope="session")
def histogram() -> Callable[[Tensor], np.ndarray]:
    """Counts of abs(x) in 50 equal bins on 0..10, and of what lies above."""

    def counts(tensor: Tensor) -> np.ndarray:
        return np.histogram(np.abs(numbers(tensor)), np.append(np.linspace(0, 10, 51), np.inf))[0]

    return counts


@pytest.fixture
def watching() -> Iterator[Callable[..., Watching]]:
    """Put models under collectors; at the end their hooks go."""
    made: list[Watching] = []

    def watch(model: nn.Module, optimizer: Any = None, choice: Any = None, asked: Any = ()) -> Watching:
        made.append(Watching(model, optimizer, choice, asked))
        return made[-1]

    yield watch
    for each in made:
        each.collector.close()
