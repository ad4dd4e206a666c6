"""A skipped step leaves its weights and state alone: several optimizers, accumulated gradients."""

from __future__ import annotations

import copy

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
        for _ in range(3):
            loss = guarded.loss() / 3
            (loss if scaler is None else scaler.scale(loss)).backward()
        before = copy.deepcopy(guarded.optimizer.state_dict()["state"]), guarded.state()
        session.guard.step(loss)
        assert (guarded.state() == before[1]) == (step == 2)
    assert [observation.frame.step for observation in session.seen] == [0, 1, 2, 3]
