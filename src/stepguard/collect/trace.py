"""The forward pass once more, after a step that was not measured turned out bad: where did it begin?

Flow: in come the model and what it was given; the hooks on its layers see the pass again. Nothing of the
training changes by it: buffers and generators of random numbers are put back bit for bit, and no graph is
built.

Limits: it is the last call of the model in that step, with the numbers that its inputs hold now; dropout on
an accelerator draws anew; side effects of a `forward` of one's own happen twice; under torch.distributed,
where ranks would wait for each other, there is no trace.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_AUTOCAST = ("cpu", "cuda")


class Call(NamedTuple):
    """One call of the model, as it has to be repeated."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    generator: Tensor
    """State of the host's generator before the call."""
    autocast: tuple[tuple[str, torch.dtype], ...]
    """Devices under autocast, and its number format."""


def call_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Note a call that is about to be made."""
    cast = tuple((d, torch.get_autocast_dtype(d)) for d in _AUTOCAST if torch.is_autocast_enabled(d))
    return Call(args, kwargs, torch.get_rng_state(), cast)


def repeat(model: nn.Module, call: Call) -> None:
    """Make the call again, and leave no trace of it but what hooks have seen.

    What the model raises is raised here too.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    with ExitStack() as stack:
        stack.enter_context(_random_numbers_kept())
        stack.enter_context(_buffers_kept(model))
        stack.enter_context(torch.no_grad())
        for device, dtype in call.autocast:
            stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
        torch.set_rng_state(call.generator)
        model(*call.args, **call.kwargs)


@contextmanager
def _random_numbers_kept() -> Generator[None, None, None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _buffers_kept(model: nn.Module) -> Generator[None, None, None]:
    """Put back which buffers the modules have and what they hold."""
    held = [(module, dict(module._buffers)) for module in model.modules()]  # pyright: ignore
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)  # pyright: ignore
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
