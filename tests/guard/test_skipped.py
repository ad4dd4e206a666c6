"""A skipped step leaves its weights and state alone: several optimizers, accumulated gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

SKIP = "- {name: s, when: step == 2 and loss > 0, action: skip}"


class Two:
    """Two optimizers over the halves of one model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizers = [
            torch.optim.Adam(self.model[0].parameters(), lr=1e-2),
            torch.optim.SGD(self.model[2].parameters(), lr=1e-2, momentum=0.9),
        ]

    def state(self, half: int) -> list[bytes]:
        tensors = list(self.model[2 * half].state_dict().values())
        for entry in self.optimizers[half].state_dict()["state"].values():
            tensors += [value for value in entry.values() if isinstance(value, torch.Tensor)]
        return [tensor.numpy().tobytes() for tensor in tensors]


class Half:
    def __init__(self, both: Two, half: int) -> None:
        self.model, self.optimizer = both.model, both.optimizers[half]


@pytest.mark.parametrize("skipping", [0, 1])
def test_only_the_optimizer_whose_guard_skips_stays(watched, rules, skipping: int) -> None:
    both = Two()
    files = [rules(SKIP if half == skipping else "- {name: never, when: loss < -1e9}") for half in (0, 1)]
    guards = [watched(Half(both, half), rules=files[half]).guard for half in (0, 1)]
    for step in range(4):
        loss = both.model(torch.randn(8, 4)).square().mean()
        both.model.zero_grad()
        loss.backward()
        before = [both.state(half) for half in (0, 1)]
        for guard in guards:
            guard.step(loss)
        moved = [both.state(half) != before[half] for half in (0, 1)]
        assert moved == [step != 2 or half != skipping for half in (0, 1)]


@pytest.mark.parametrize("scaled", [False, True])
def test_with_accumulated_gradients_the_whole_step_is_skipped(training, watched, rules, scaled: bool) -> None:
    guarded = training(lambda p: torch.optim.AdamW(p, lr=1e-2))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    session = watched(guarded, rules=rules(SKIP), scaler=scaler)
    for step in range(4):
        guarded.optimizer.zero_grad()
        before = guarded.state()
        for _ in range(3):
            loss = guarded.loss() / 3
            (loss if scaler is None else scaler.scale(loss)).backward()
        generator = torch.get_rng_state()
        session.guard.step(loss)
        assert torch.equal(torch.get_rng_state(), generator)
        moved = {name for name, value in guarded.state().items() if value != before.get(name)} - {"/2"}
        assert (not moved) == (step == 2), "of weights, optimizer and batch norm's statistics"
    assert [observation.frame.step for observation in session.seen] == [0, 1, 2, 3]


def _statistics(model: nn.Module) -> list[bytes]:
    return [buffer.numpy().tobytes() for buffer in model.buffers()]


@pytest.mark.parametrize("every", [1, "auto"])
def test_a_skipped_batch_leaves_no_trace_in_batch_norm(training, watched, rules, every: int | str) -> None:
    guarded = training()
    session = watched(guarded, rules=rules("- {name: s, when: nonfinite(loss), action: skip}"), every=every)
    x = guarded.batches[3][0]
    guarded.batches[3] = torch.where(torch.arange(8) == 0, float("nan"), x), guarded.batches[3][1]
    guarded.run(3, session.guard.step)
    before = _statistics(guarded.model)
    guarded.run(1, session.guard.step)
    assert [kind for _, _, kind in session.decided()] == ["skip"]
    assert _statistics(guarded.model) == before
    guarded.run(2, session.guard.step)
    assert _statistics(guarded.model) != before


def test_buffers_that_only_lie_there_are_left_alone(training, watched, rules) -> None:
    guarded = training()
    mask = torch.ones(3, 3).tril()
    guarded.model.register_buffer("mask", mask)
    session = watched(guarded, rules=rules(SKIP))
    guarded.run(2, session.guard.step)
    version = mask._version
    guarded.run(2, session.guard.step)
    assert guarded.model.mask is mask
    assert mask._version == version


def test_a_buffer_that_its_module_replaces_goes_back_by_value(training, watched, rules) -> None:
    guarded = training()
    guarded.model.register_buffer("count", torch.zeros(()))

    def count(model: nn.Module, *_: object) -> None:
        model.count = model.count + 1

    guarded.model.register_forward_hook(count)
    session = watched(guarded, rules=rules(SKIP))
    guarded.run(5, session.guard.step)
    assert float(guarded.model.count) == 4.0, "of five steps one was skipped"
