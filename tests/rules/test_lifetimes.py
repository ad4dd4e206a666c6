"""Rules that are over cost nothing more, and what the others say stays the same."""

from __future__ import annotations

import pickle
from math import inf

import numpy as np
import pytest

from stepguard.engine import Engine
from stepguard.rules.alert import Change
from stepguard.rules.expression import compile_condition
from stepguard.rules.lifetimes import last_step
from stepguard.rules.packs import read_text_rules
from stepguard.signals import Frame, Layer, Vector

LAYERS = [Layer("a", "Linear"), Layer("b", "ReLU")]


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        ("loss > 2", inf, inf),
        ("loss > 2 and step < 100", 100, 100),
        ("loss > 2 or step < 100", inf, inf),
        ("loss > 2 and (step < 100 or progress < 0.3)", 301, 100),
        ("0.4 <= progress <= 0.7 and loss > 2", 701, -inf),
        ("7 > step and act.std > 2", 7, 7),
        ("step > 100 and loss > 2", inf, inf),
        ("not step > 100", inf, inf),
        ("step + 1 < 100", inf, inf),
        ("progress > 0.5", inf, -inf),
    ],
)
def test_what_the_clocks_tell(text: str, known: float, unknown: float) -> None:
    root = compile_condition(text).root
    assert (last_step(root, 1000), last_step(root, None)) == (known, unknown)


ALWAYS = "- {name: always, when: 'median(loss, 5) > 1.2 or any(growth(act.std, 3) > 1.5)'}"
ENDING = """
- {name: clock, when: 'any(max(act.std, 9) > 2) and (step < 120 or progress < 0.3)', for: 3, keep: 40}
- {name: span, when: 'mad(loss, 7) > 0.3 and early(loss, 5) > 0', active: ..150, for: 2}
- {name: percent, when: 'prev(act.std, 4) > 1', active: 10%..40%}
"""


def frames(count: int) -> list[Frame]:
    random = np.random.default_rng(0)
    made: list[Frame] = []
    for step in range(count):
        values = np.exp(random.normal(0, 0.5, 2)).astype(np.float32)
        vectors = {"act.std": Vector(values, np.array([True, step % 3 == 0]))}
        made.append(Frame(step, {"loss": float(np.exp(random.normal(0, 0.5)))}, vectors))
    return made


def engine(rules: str, total: int | None) -> Engine:
    return Engine(read_text_rules(f"version: 1\nrules:\n{rules}", "test"), LAYERS, total)


def changes(rules: str, total: int | None, *, turn: str = "") -> list[Change]:
    watching, found = engine(rules, total), list[Change]()
    for frame in frames(500):
        if frame.step == 300 and turn == "reload":
            state = pickle.loads(pickle.dumps(watching.state_dict()))
            watching = engine(rules, total)
            watching.load_state_dict(state)
        elif frame.step == 300 and turn == "rewind":
            found += watching.rewind(270, 299)
        found += watching.evaluate(frame)
    assert not watching.take_failures()
    return found


@pytest.mark.parametrize("turn", ["", "reload", "rewind"])
@pytest.mark.parametrize("total", [None, 500])
def test_the_others_say_the_same(total: int | None, turn: str) -> None:
    alone = changes(ALWAYS, total, turn=turn)
    together = changes(ENDING + ALWAYS, total, turn=turn)
    assert [change for change in together if change.rule == "always"] == alone
    assert len({change.rule for change in together}) == (4 if total else 3)
    begun = [change.step for change in together if change.rule == "clock" and change.state == "firing"]
    assert 0 < max(begun) <= (150 if total else 120)


def last_readings(rules: str) -> dict[str, int]:
    """The newest step that is kept after 500, by what windows look at."""
    watching = engine(rules, None)
    for frame in frames(500):
        watching.evaluate(frame)
    history = watching.state_dict()["windows"]["history"]
    return {key: int(ring["steps"][-1]) for key, ring in history.items() if len(ring["steps"])}


def test_nothing_more_is_kept_for_rules_that_are_over() -> None:
    assert max(last_readings(ENDING).values()) < 300
    assert last_readings(ENDING + ALWAYS)["act.std"] == 499


def test_a_state_of_an_earlier_step_wakes_them_again() -> None:
    """An engine that has gone past the end of its rules goes back to before it."""
    recorded = frames(500)
    watching, straight = engine(ENDING, None), engine(ENDING, None)
    for frame in recorded[:60]:
        watching.evaluate(frame)
        straight.evaluate(frame)
    state = pickle.loads(pickle.dumps(watching.state_dict()))
    for frame in recorded[60:]:
        watching.evaluate(frame)
    watching.load_state_dict(state)
    again = [watching.evaluate(frame) for frame in recorded[60:]]
    assert again == [straight.evaluate(frame) for frame in recorded[60:]]
    assert any(again)
