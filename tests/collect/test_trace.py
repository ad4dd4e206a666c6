"""A step that was not measured and turns out bad is traced to the layer, and the training does not notice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

Watch = Callable[..., Any]


class Fragile(nn.Linear):
    """Divides by zero when it is told to."""

    broken = False

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / (0.0 if self.broken else 1.0)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), Fragile(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def everything(watched: Any) -> list[Any]:
    """Bytes of all that a training consists of, random numbers to come included."""
    model = watched.model
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    states = [t for s in watched.optimizer.state.values() for t in s.values()]
    return [
        *(t.detach().numpy().tobytes() for t in [*tensors, *states, torch.get_rng_state()]),
        random.getstate(),
        str(np.random.get_state()),
    ]


def bad(watched: Any, frame: Any) -> list[str]:
    vector = frame.vectors["act.nonfinite"]
    return [name for name, value in zip(watched.names(), vector.values, strict=True) if value > 0]


@pytest.fixture
def unmeasured(watching: Watch) -> Any:
    """A model after a measured step, of which the next passes are not measured."""
    watched = watching(model := net(), None)
    watched.train(torch.randn(6, 4))
    watched.collector.active = False
    return model, watched


def test_the_first_bad_layer_is_named_at_a_step_that_was_not_measured(unmeasured: Any) -> None:
    model, watched = unmeasured
    frame = watched.train(torch.randn(6, 4), sampled=False)
    assert "act.nonfinite" not in frame.vectors
    model[3].broken = True
    loss = watched.backward(torch.randn(6, 4))
    before = copy.deepcopy(everything(watched))
    frame = watched.frame(loss, sampled=False)
    assert everything(watched) == before
    assert watched.faults == []
    assert bad(watched, frame)[0] == "3"
    assert watched.read(frame, "act.nonfinite", "0") == 0
    assert watched.read(frame, "act.nonfinite", "1") == 0


def test_a_bad_loss_alone_is_traced_too(unmeasured: Any) -> None:
    model, watched = unmeasured
    model[3].broken = True
    model(torch.randn(6, 4))
    watched.optimizer.zero_grad()
    assert bad(watched, watched.frame(torch.tensor(np.nan), sampled=False))[0] == "3"


def test_dropout_draws_the_same_numbers_again(unmeasured: Any) -> None:
    model, watched = unmeasured
    seen: list[Tensor] = []
    model[2].register_forward_hook(lambda _module, _args, output: seen.append(output.detach().clone()))
    model[3].broken = True
    loss = watched.backward(torch.randn(6, 4))
    watched.frame(loss, sampled=False)
    first, again = seen
    assert torch.equal(first, again)


def test_a_gradient_that_went_bad_on_the_way_back_shows_no_bad_layer(unmeasured: Any) -> None:
    _, watched = unmeasured
    loss = watched.backward(torch.randn(6, 4))
    watched.model[0].weight.grad[0, 0] = np.nan
    frame = watched.frame(loss, sampled=False)
    assert bad(watched, frame) == []
    assert watched.read(frame, "grad.nonfinite", "0") == 1


def test_a_model_that_fails_the_second_time_is_a_fault_and_no_more(unmeasured: Any) -> None:
    model, watched = unmeasured
    model[3].broken = True
    loss = watched.backward(torch.randn(6, 4))
    model[5].forward = lambda x: x.no_such_thing
    before = everything(watched)
    frame = watched.frame(loss, sampled=False)
    assert len(watched.faults) == 1
    assert everything(watched) == before
    assert watched.read(frame, "grad.nonfinite", "3") > 0


def test_steps_after_a_trace_are_measured_as_ever(unmeasured: Any) -> None:
    model, watched = unmeasured
    model[3].broken = True
    watched.frame(watched.backward(torch.randn(6, 4)), sampled=False)
    model[3].broken = False
    frame = watched.train(torch.randn(6, 4), sampled=False)
    assert "act.nonfinite" not in frame.vectors
    watched.collector.active = True
    frame = watched.train(torch.randn(6, 4))
    assert bad(watched, frame) == []


def test_the_batch_is_not_kept_beyond_its_step(unmeasured: Any) -> None:
    _, watched = unmeasured
    given = torch.randn(6, 4)
    watched.train(given, sampled=False)
    assert watched.collector._taps.last_call is None
