"""What the observer makes of steps that were not taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stepguard


@pytest.mark.parametrize("signal", ["update.ratio", "weight.norm"])
def test_a_step_that_was_skipped_tells_of_no_update(tmp_path, signal: str) -> None:
    """It is no update of zero: a rule about weights that stand still must not see one."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules: [{name: third, when: step == 3, action: skip}]\n")
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told: dict[int, bool] = {}
    with stepguard.watch(
        model,
        optimizer,
        rules=rules,
        run=None,
        console=None,
        subscribers=[lambda seen: told.update({seen.frame.step: signal in seen.frame.vectors})],
        on_error="raise",
    ) as guard:
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            guard.step(loss)
    assert told == {0: signal == "weight.norm", 1: True, 2: True, 3: True, 4: False, 5: True}
