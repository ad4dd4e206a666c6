"""After the first steps nothing is allocated anew but what a frame holds."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Watch = Callable[..., Any]


class Allocated(TorchDispatchMode):
    """Counts the elements of fresh tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(x) for x in (*args, *kwargs.values())}
        result = func(*args, **kwargs)
        fresh = not func.is_view and "out" not in kwargs and not func._schema.name.endswith("_")
        if fresh and isinstance(result, torch.Tensor) and id(result) not in given:
            self.elements += result.numel()
        return result


def test_a_step_allocates_next_to_nothing_anew(watching: Watch) -> None:
    """Of a network whose outputs, weights and gradients are half a million numbers."""
    torch.manual_seed(0)
    layers = [m for _ in range(4) for m in (nn.Linear(200, 200), nn.ReLU())]
    watched = watching(nn.Sequential(*layers))
    x = torch.randn(300, 200)
    for _ in range(3):
        watched.train(x)
    loss = watched.backward(x)
    with Allocated() as allocated:
        watched.frame(loss)
    assert allocated.elements < 1000
    gc.collect()
    tracemalloc.start()
    for _ in range(5):
        watched.train(x)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(20):
        watched.train(x)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 10_000
