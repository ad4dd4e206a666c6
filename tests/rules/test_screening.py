"""The screens against the evaluation: what may not hold does not hold, at any step of any frames."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepguard.rules.evaluate import Evaluator, Watch
from stepguard.rules.expression import compile_condition
from stepguard.rules.packs import load_rules, pack_names
from stepguard.signals import SIGNALS, Frame, Layer, Vector

LAYERS = (Layer("conv", "Conv2d"), Layer("relu", "ReLU"), Layer("body", "Linear"), Layer("head", "Linear"))
OWN = (
    "crash(act.std, 1.5, 1.5, 9) and loss > 1",
    "any(act.std > 2) or any(act.std < 0.5 or grad.norm > 3)",
    "all(act.std > 1 and not grad.norm > 2)",
    "share(act.std > 2) > 0.4 and count(grad.norm >= 1) >= 2",
    "share(act.std > 2) >= 0",
    "share(act.std > 2) < 0.9",
    "act.std > 0.99 or loss > 2",
    "act.std > 1 and lr > 0",
    "held(loss > 1, 2, of=5) and grad_norm > 0",
    "held(any(act.std > 2) or step > 20, 3, of=7)",
    "spike(loss, 8, by=1.2) or drift(loss, 20, by=1.1) or plateau(loss, 20, by=0.2)",
    "not (crash(loss, 1.5, 1.5, 9) or loss > 3)",
    "mean(loss, 3) > 1",
    "growth(grad_norm, 2) >= 1.5 or delta(loss, 1) > 1 or prev(lr, 3) > 1",
    "spike(worst(act.std), 8, by=1.5)",
    "nonfinite(loss) or any(nonfinite(act.std))",
    "act.std > 1.5 and not sure(loss > 1)",
    "not sure(any(act.std > 1) and median(loss, 3) < 1)",
    "held(crash(act.std, 1.5, 1.5, 9), 2, of=9)",
    "step > 5 or lr > 0",
    "first(grad.norm) / last(grad.norm) < 0.5",
    "share(median(act.std, 5) > 1.5) >= 0.5",
    "max(act.std, 4) >= 2 or min(act.std, 3) > 1.2",
    "worst(max(act.std, 5)) < 1.5 and lr > 0",
    "worst(max(act.std - grad.norm, 3)) <= 0",
    "all(growth(act.std, 3) > 1.1) or share(delta(grad.norm, 4) < 0) > 0.5",
    "prev(act.std, 2) > 1.5",
    "median(loss, 5) > 1.5 * early(loss, 3) and mad(loss, 5) < 0.3",
    "last(act.rms) > 2 * early(last(act.rms), 4)",
)
"""Every way a screen goes, and the ways around it."""


def frames(seed: int, count: int) -> list[Frame]:
    """Levels that move and jump, at any cadence, with signals, layers and numbers missing."""
    random = np.random.default_rng(seed)
    cadence, often = random.choice([1, 3]), random.choice([1.0, 0.6])
    level, made = 1.0, list[Frame]()
    for place in range(count):
        frame = Frame(int(place * cadence + random.integers(0, cadence)))
        level *= np.exp(random.normal(0, 0.1)) * random.choice([1, 3, 1 / 3], p=[0.94, 0.03, 0.03])
        for signal in SIGNALS.values():
            if random.random() > often:
                continue
            odd = random.choice([0, np.nan, np.inf], 4)
            values = np.where(random.random(4) < 0.02, odd, level * np.exp(random.normal(0, 0.3, 4)))
            if signal.per == "run":
                frame.scalars[signal.name] = float(values[0])
            elif place % 3 == 0 or often == 1:
                frame.vectors[signal.name] = Vector(values.astype(np.float32), random.random(4) < 0.9)
        made.append(frame)
    return made


def check(watches: list[Watch], seed: int, count: int, turn: int) -> int:
    """Compare at each step, with a reload or a rewind in between; give how often something held."""
    evaluator, found = Evaluator(watches, len(LAYERS)), 0
    for place, frame in enumerate(frames(seed, count)):
        if place == turn and seed % 2:
            state = pickle.loads(pickle.dumps(evaluator.state_dict()))
            evaluator = Evaluator(watches, len(LAYERS))
            evaluator.load_state_dict(state)
        elif place == turn:
            evaluator.rewind(frame.step - 4, frame.step - 1 if seed % 4 else None)
        fed = evaluator.feed(frame, None)
        may = set(fed.may_hold)
        truths = [evaluator.truth(watch) for watch in range(len(watches))]
        holds = {watch for watch, truth in enumerate(truths) if truth.holds.any()}
        assert holds <= may, [watches[watch].condition.text for watch in holds - may]
        assert {watch for watch, truth in enumerate(truths) if truth.known.any()} <= fed.may_be_known
        found += len(holds)
    return found


masks = st.lists(st.booleans(), min_size=4, max_size=4).map(lambda mask: np.array(mask, np.bool_))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), masks, st.integers(0, 60))
def test_what_holds_is_never_screened_out(seed: int, mask: np.ndarray, turn: int) -> None:
    check([Watch(compile_condition(text), mask) for text in OWN], seed, 60, turn)


@pytest.mark.parametrize("pack", pack_names())
def test_nor_in_the_shipped_packs(pack: str) -> None:
    rules = load_rules(pack)
    watches = [
        Watch(rule.condition, np.array([rule.layers.matches(layer) for layer in LAYERS])) for rule in rules
    ]
    assert sum(check(watches, seed, 150, 80) for seed in range(3)) > 0


def test_a_threshold_is_not_rounded_to_the_float32_of_a_signal() -> None:
    """0.1 as float32 lies above 0.1, and so do all of these layers."""
    evaluator = Evaluator([Watch(compile_condition("any(act.std > 0.1)"), np.ones(4, np.bool_))], 4)
    vector = Vector(np.full(4, 0.1, np.float32), np.ones(4, np.bool_))
    assert evaluator.feed(Frame(0, vectors={"act.std": vector}), None).may_hold == [0]
    assert evaluator.truth(0).holds


def test_a_rule_is_not_even_looked_at_where_none_of_its_signals_was_measured() -> None:
    texts = ["any(act.std > 2)", "loss > 1", "all(act.std > 2) and lr > 0", "nonfinite(lr) or act.std > 2"]
    evaluator = Evaluator([Watch(compile_condition(text), np.ones(4, np.bool_)) for text in texts], 4)
    fed = evaluator.feed(Frame(0, {"loss": 2.0, "lr": 0.1}), None)
    assert (fed.may_be_known, fed.may_hold) == ({1, 2, 3}, [1])


def test_what_fails_may_hold_so_that_it_is_said() -> None:
    evaluator = Evaluator([Watch(compile_condition("any(act.std > 2)"), np.ones(4, np.bool_))], 4)
    frame = Frame(0, vectors={"act.std": Vector(np.zeros(7, np.float32), np.ones(7, np.bool_))})
    assert evaluator.feed(frame, None).may_hold == [0]
    with pytest.raises(ValueError, match="shape"):
        evaluator.truth(0)
