"""Many steps side by side against one step after the other: the same is said, and the same remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.rules.evaluate import Evaluator, Watch
from stepguard.rules.expression import compile_condition
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.packs import load_rules, pack_names
from stepguard.series.blocks import Block
from stepguard.series.columns import decode, encode
from stepguard.signals import SIGNALS, Frame, Layer, Vector

LAYERS = (Layer("conv", "Conv2d"), Layer("relu", "ReLU"), Layer("body", "Linear"), Layer("head", "Linear"))
CONDITIONS = (
    "crash(act.std, 1.5, 1.5, 9) and loss > 1",
    "share(crash(act.std, 2, 2, 12)) > 0.5 and (step < 40 or progress > 0.9)",
    "any(act.std > 2) or any(act.std < 0.5 or grad.norm > 3)",
    "all(act.std > 1 and not grad.norm > 2)",
    "share(act.std > 2) < 0.1 and count(grad.norm >= 1) >= 2",
    "act.std > loss and lr > 0",
    "held(loss > 1, 2, of=5) and grad_norm > 0",
    "held(any(act.std > 2) or step > 20, 3, of=7)",
    "held(crash(act.std, 1.5, 1.5, 9), 2, of=9)",
    "spike(loss, 8, by=1.2) or drift(loss, 20, by=1.1) or plateau(loss, 20, by=0.2)",
    "spike(worst(act.std), 8, by=1.5)",
    "zscore(loss, 9) > 4 or zscore(act.std, 12) > 5",
    "not (crash(loss, 1.5, 1.5, 9) or loss < 3)",
    "mean(loss, 3) > 3 or std(loss, 9) > 1 or ewma(loss, 4) > 4",
    "mean(act.std, 3) > 4 or std(act.std, 9) > 3 or ewma(act.std, 4) > 5",
    "slope(loss, 9) > 0.3 or trend(loss, 12) > 2.5 or slope(act.std, 7) > 1 or trend(act.std, 20) > 2.5",
    "max(mean(loss, 20), 3) > 9 or max(std(loss, 12), 3) > 9 or max(ewma(loss, 5), 3) > 9",
    "max(mean(act.std, 20), 3) > 9 or max(zscore(act.std, 30), 3) > 99 or max(mad(act.std, 30), 3) > 9",
    "max(slope(loss, 30), 3) > 9 or max(growth(loss, 5), 3) > 99 or max(last(act.std), 4) > 99",
    "trend(loss, 60) > 5 or trend(last(act.std), 50) < -5",
    "growth(grad_norm, 2) >= 2 or delta(loss, 1) > 2 or prev(lr, 3) > 4",
    "all(growth(act.std, 3) > 1.1) or share(delta(grad.norm, 4) < 0) > 0.8",
    "nonfinite(loss) or any(nonfinite(act.std))",
    "act.std > 4 and not sure(loss < 2) or loss > 9 and not sure(any(act.std < 2))",
    "first(grad.norm) / last(grad.norm) < 0.3 or -worst(-grad.norm) > 4",
    "median(act.std, 5) > 4 or mad(act.std, 7) > 2 or abs(-act.rms) ** 2 > 30",
    "max(act.std, 4) >= 6 or min(act.std, 3) > 3 or prev(act.std, 2) > 5",
    "worst(max(act.std, 5)) < 1 and lr > 0",
    "median(loss, 5) > 1.5 * early(loss, 3) and mad(loss, 5) < 0.3",
    "last(act.rms) > 4 * early(last(act.rms), 4) or share(weight.norm > 5 * early(weight.norm, 1)) > 0.6",
)


def frames(seed: int, count: int) -> list[Frame]:
    """Levels that move, at any cadence; signals, layers and numbers are missing in some of the runs."""
    random = np.random.default_rng(seed)
    cadence, gaps = int(random.choice([1, 3])), random.random() < 0.3
    full, unknown = int(random.choice([1, 5])), random.choice([0.0, 0.1])
    level, made = 1.0, list[Frame]()
    for place in range(count):
        frame = Frame(place * cadence + (int(random.integers(0, cadence)) if gaps else 0))
        level *= np.exp(random.normal(0, 0.05)) * random.choice([1, 2, 1 / 2], p=[0.98, 0.01, 0.01])
        for signal in SIGNALS.values():
            if gaps and random.random() < 0.02:
                continue
            odd = random.choice([0, np.nan, np.inf], 4)
            values = np.where(random.random(4) < 0.002, odd, level * np.exp(random.normal(0, 0.2, 4)))
            if signal.per == "run":
                frame.scalars[signal.name] = float(values[0])
            elif place % full == 0:
                frame.vectors[signal.name] = Vector(values.astype(np.float32), random.random(4) >= unknown)
        made.append(frame)
    return made


def block_of(made: list[Frame]) -> Block:
    """The frames as a run file gives them back."""
    names = [*SIGNALS]
    data, _ = encode(made, names.index)
    return decode(data, dict(enumerate(names)))


def same(one: Any, other: Any) -> None:
    """Compare what is remembered, bit for bit."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    else:
        np.testing.assert_array_equal(one, other)


def passed(watches: list[Watch], seed: int, count: int = 120, total: int | None = 500) -> int:
    """Compare both ways over a run; give how many frames were looked at together."""
    single, together = Evaluator(watches, len(LAYERS)), Evaluator(watches, len(LAYERS))
    made, at, found = frames(seed, count), 0, 0
    while at < count:
        quiet = together.pass_over(block_of(made[at : at + 64]), total)
        for place, frame in enumerate(made[at : at + quiet + 12]):
            progress = frame.step / total if total else None
            single.feed(frame, progress)
            truths = [single.truth(watch).holds.any() for watch in range(len(watches))]
            if place < quiet:
                assert not any(truths), frame.step
            else:
                together.feed(frame, progress)
                assert truths == [together.truth(watch).holds.any() for watch in range(len(watches))]
        at, found = at + quiet + 12, found + quiet
    same(together.state_dict(), single.state_dict())
    return found


def watch(text: str, mask: tuple[bool, ...] = (True, True, True, True)) -> Watch:
    return Watch(compile_condition(text), np.array(mask))


@pytest.mark.parametrize("text", CONDITIONS)
def test_each_function_gives_the_same(text: str) -> None:
    masks = [(True,) * 4, (True, False, True, True), (False, True, True, False)]
    assert sum(passed([watch(text, masks[seed % 3])], seed) for seed in range(4)) > 60


def test_no_function_is_left_out() -> None:
    assert {name for name in FUNCTIONS if not any(f"{name}(" in text for text in CONDITIONS)} == set()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sets(st.sampled_from(CONDITIONS), min_size=1, max_size=4), st.booleans())
def test_so_do_some_of_them_together(seed: int, texts: set[str], long: bool) -> None:
    passed([watch(text) for text in sorted(texts)], seed, total=500 if long else None)


@pytest.mark.parametrize("pack", pack_names())
def test_so_do_the_shipped_packs(pack: str) -> None:
    rules = load_rules(pack)
    watches = [Watch(rule.condition, np.array([rule.layers.matches(x) for x in LAYERS])) for rule in rules]
    for each in watches:
        passed([each], 1)


def test_of_a_network_of_one_layer_sums_are_the_same_to_the_last_bit() -> None:
    """Numpy adds a single column in pairs, and several ones row by row."""
    random = np.random.default_rng(0)
    # The means are readings of the outer window, so they are remembered, and compared below.
    condition = watch("max(mean(act.std, 40), 3) > 1.5", (True,))
    single, together = Evaluator([condition], 1), Evaluator([condition], 1)
    known = np.ones(1, np.bool_)
    made = [Frame(step, {}, {"act.std": Vector(random.random(1, np.float32), known)}) for step in range(100)]
    assert together.pass_over(block_of(made), None) == 100
    for frame in made:
        single.feed(frame, None)
    same(together.state_dict(), single.state_dict())


def test_frames_of_another_number_of_layers_are_left_to_the_evaluation_of_each() -> None:
    evaluator = Evaluator([watch("any(act.std > 2)")], 4)
    vector = Vector(np.zeros(7, np.float32), np.ones(7, np.bool_))
    assert evaluator.pass_over(block_of([Frame(0, {}, {"act.std": vector})]), None) == 0
