from __future__ import annotations

import math

import pytest

from stepguard.report.causes import likely_causes
from stepguard.report.findings import Findings, Past, Site
from stepguard.rules.alert import Evidence
from stepguard.signals import Layer

NAN = math.nan


def causes(
    signal: str,
    readings: tuple[float, ...] = (),
    at: dict[int, float | None] | None = None,
    types: str = "CCCCCC",
) -> tuple[str, ...]:
    evidence = Evidence(signal, readings[-1] if readings else None, tuple(range(len(readings))), readings)
    sites = [Site(i, Layer(f"layer{i}", types[i]), value) for i, value in (at or {}).items()]
    layers = [Layer(f"layer{i}", types[i]) for i in range(6)]
    return likely_causes(Findings(evidence, sites, layers, Past.none()))


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ((1.0, 2.0, 8.0, 90.0, 1e4, NAN), "loss grew 10,000x just before: it diverged until it overflowed"),
        (
            (2.0, 2.1, 1.9, 2.0, math.inf),
            "loss was steady just before: one bad batch or operation rather than a divergence",
        ),
        ((NAN, NAN, NAN), "loss was never finite in 3 readings: look at the first step"),
    ],
)
def test_what_came_before_a_reading_that_is_not_finite(readings: tuple[float, ...], expected: str) -> None:
    assert causes("loss", readings) == (expected,)


@pytest.mark.parametrize(
    "readings",
    [(), (1.0, 2.0, 50.0, 900.0), (1.0, 2.0, NAN), (1.0, 3.0, 2.0, 4.0, NAN), (0.0, 5.0, 50.0, 90.0, NAN)],
    ids=["nothing", "finite", "too few", "undecided", "from zero"],
)
def test_what_is_not_clear_is_not_said(readings: tuple[float, ...]) -> None:
    assert causes("loss", readings) == ()


def test_forwards_it_starts_at_the_first_layer_of_the_run() -> None:
    (cause,) = causes("act.nonfinite", at={3: None, 4: None, 5: None})
    assert cause == "every layer from layer3 on, and none before it: it starts at layer3"


def test_backwards_it_starts_at_the_last_layer_of_the_run() -> None:
    (cause,) = causes("grad.nonfinite", at={0: None, 1: None, 2: None})
    assert cause == "every layer up to layer2, and none behind it: going backwards, it starts at layer2"


@pytest.mark.parametrize(
    ("signal", "at"),
    [
        ("act.nonfinite", {0: None, 1: None, 2: None}),
        ("act.nonfinite", {3: None, 5: None}),
        ("act.nonfinite", {5: None}),
        ("act.nonfinite", dict.fromkeys(range(6))),
        ("grad.nonfinite", {3: None, 4: None, 5: None}),
        ("weight.nonfinite", {3: None, 4: None, 5: None}),
        ("act.std", {3: None, 4: None, 5: None}),
    ],
)
def test_no_origin_without_an_unbroken_run_to_the_far_end(signal: str, at: dict[int, float | None]) -> None:
    assert causes(signal, at=at) == ()


def test_growth_with_depth_compares_layers_of_one_type() -> None:
    at = {0: 1.0, 1: 0.1, 2: 5.0, 3: 0.1, 4: 30.0}
    (cause,) = causes("act.std", at=at, types="CRCRCR")
    assert cause == "act.std grows with depth, from 1 at layer0 to 30 at layer4"
    assert causes("act.std", at=at, types="CCCCCC") == ()


def test_shrinking_with_depth() -> None:
    (cause,) = causes("grad.norm", at={1: 1.0, 3: 0.1, 5: 0.001})
    assert cause == "grad.norm shrinks with depth, from 1 at layer1 to 0.001 at layer5"
    assert causes("act.dead", at={1: 1.0, 3: 0.1, 5: 0.001}) == ()
    assert causes("grad.norm", at={1: 1.0, 3: 0.5, 5: 0.2}) == ()


def test_exact_zeros() -> None:
    assert "nothing flows back" in causes("grad.norm", (0.0, 0.0, 0.0))[0]
    assert causes("grad.norm", (0.0, 0.0, 1e-12)) == ()
    assert causes("act.dead", (0.0, 0.0)) == ()
