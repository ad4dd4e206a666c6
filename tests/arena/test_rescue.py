"""The rescues of the arena: saved is what ends healthy within the budget, and what was run is kept."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from arena.rescue import BUDGET, HEALTHY, Rescue, on_disk, rescue, rescue_all, show


@pytest.mark.parametrize(
    ("score", "budget", "saved"),
    [(HEALTHY, BUDGET, True), (HEALTHY - 0.01, 1.0, False), (1.0, BUDGET + 0.1, False), (-1.0, 0.5, False)],
)
def test_saved_is_what_ends_healthy_within_the_budget(score: float, budget: float, saved: bool) -> None:
    assert Rescue("mlp/lr-30", 0, "shipped", score, budget).saved == saved


def test_a_network_that_is_far_too_hot_is_saved_and_the_same_again_saves_nothing() -> None:
    shipped, same = (rescue("mlp/lr-30", 0, strategy) for strategy in ("shipped", "same"))
    assert shipped.saved
    assert len(shipped.history) >= 2, "it was restarted"
    assert not same.saved


def test_what_was_run_is_kept_and_shown(tmp_path: Path) -> None:
    log = tmp_path / "rescue.jsonl"
    assert on_disk(log) == {}
    (found,) = rescue_all([("shipped", "cnn/lr-10", 0)], jobs=1, log=log)
    assert on_disk(log) == {("shipped", "cnn/lr-10", 0): found}
    text = StringIO()
    show([found, Rescue("gru/lr-2", 0, "shipped")], ["shipped", "halving"], Console(width=200, file=text))
    assert "1/2 = 50.0%" in text.getvalue()
    assert "lost  gru/lr-2" in text.getvalue()
