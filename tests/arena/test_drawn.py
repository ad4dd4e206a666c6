"""Runs drawn at random: the same number is the same run, and what was judged wrongly is shown."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from rich.console import Console

from arena.drawn import Drawn, run, show
from arena.draws import KINDS, SCHEDULES, scenario, settings


def test_a_number_is_a_run() -> None:
    assert settings(3) == settings(3)
    assert all(settings(a) != settings(b) for a, b in pairwise(range(50)))
    assert {settings(number)["kind"] for number in range(200)} == set(KINDS)
    assert {settings(number)["schedule"] for number in range(200)} == set(SCHEDULES)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains(kind: str) -> None:
    number = next(number for number in range(1000) if settings(number)["kind"] == kind)
    training = scenario(number).make(number)
    training.steps = 2
    training.run()
    assert -100.0 < training.score() <= 1.0


@pytest.mark.parametrize("number", [number for number in range(40) if settings(number)["kind"] == "wine"][:2])
def test_it_is_trained_and_judged(number: int) -> None:
    found = run(number)
    assert found == run(number)
    assert found.steps == settings(number)["steps"]
    assert (found.stopped is None) == (found.by is None)


def test_what_was_judged_wrongly_is_shown() -> None:
    runs = [
        Drawn(0, 0.9, False, 200, None, None),
        Drawn(1, 0.9, False, 200, 30, "loss-plateau"),
        Drawn(2, 0.9, True, 200, 30, "rising-crash"),
        Drawn(3, 0.1, False, 200, None, None),
        Drawn(4, 0.3, False, 200, 30, "loss-plateau"),
    ]
    out = io.StringIO()
    show(runs, Console(file=out, width=120))
    told = out.getvalue()
    assert "1/2 = 50.0%" in told and "0/1 = 0.0%" in told
    assert "1: 0.90 stopped by loss-plateau at 30" in told and "3: 0.10 missed" in told
    assert not any(line.startswith(("0:", "2:", "4:")) for line in told.splitlines())
