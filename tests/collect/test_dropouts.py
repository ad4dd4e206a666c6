from __future__ import annotations

import torch
from torch import nn


def test_the_heaviest_dropout_in_training_is_read_at_measured_steps(watching) -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 8), nn.AlphaDropout(0.9), nn.Linear(8, 2)
    )
    watched = watching(model)
    x = torch.randn(16, 4)
    assert watched.train(x).scalars["dropout"] == 0.9
    model[3].p = 0.1
    assert watched.train(x).scalars["dropout"] == 0.3
    assert "dropout" not in watched.train(x, sampled=False).scalars
    model[1].eval()
    assert watched.train(x).scalars["dropout"] == 0.1


def test_a_model_without_dropout_has_none(watching) -> None:
    assert "dropout" not in watching(nn.Linear(4, 2)).train(torch.randn(16, 4)).scalars
