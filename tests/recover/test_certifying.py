"""After how many quiet steps a snapshot counts as healthy."""

from __future__ import annotations

import pytest

from stepguard.recover.certifying import BRIEF, LEAST, MOST, quiet_time
from stepguard.rules.packs import load_rules


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(None, 274), (100_000, 274), (2000, 200), (250, 25), (60, BRIEF)]
)
def test_a_tenth_of_a_run_of_known_length_is_enough(total_steps: int | None, expected: int) -> None:
    assert quiet_time(load_rules("default"), 1, total_steps) == expected


def test_a_long_window_does_not_put_it_off_for_ever(tmp_path) -> None:
    for steps, expected in ((1, LEAST), (5000, MOST)):
        path = tmp_path / f"{steps}.yaml"
        text = f"version: 1\nrules:\n  - {{name: r, when: 'mean(loss, {steps}) > 3', action: halt}}\n"
        path.write_text(text)
        assert quiet_time(load_rules(path), 1) == expected
