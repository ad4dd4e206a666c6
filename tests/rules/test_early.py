"""`early(x, n)`: the median of the first n steps, unknown before they are over and the same ever after."""

from __future__ import annotations

import numpy as np
import pytest

from stepguard.engine import Engine
from stepguard.rules.packs import read_text_rules
from stepguard.signals import Frame, Layer, Vector

LAYERS = (Layer("a", "Linear"), Layer("b", "Linear"))


def engine(when: str) -> Engine:
    text = f"version: 1\nrules: [{{name: r, when: '{when}', action: warn}}]\n"
    return Engine(read_text_rules(text, "test"), LAYERS)


def fired(engine: Engine, losses: list[float | None], begin: int = 0) -> list[int]:
    found: list[int] = []
    for step, loss in enumerate(losses, begin):
        changes = engine.evaluate(Frame(step, {} if loss is None else {"loss": loss}))
        found += [step for change in changes if change.state == "firing"]
    return found


def test_the_median_of_the_first_steps_once_they_are_over() -> None:
    assert fired(engine("early(loss, 3) == 2"), [1, 2, 9, 50, 50]) == [2]
    assert fired(engine("early(loss, 3) != 2"), [1, 2, 9, 50, 50, 7]) == []


def test_it_stays_however_long_the_run() -> None:
    losses: list[float | None] = [4.0] * 5 + [1.0] * 500 + [9.0]
    assert fired(engine("loss > 2 * early(loss, 5)"), losses) == [505]


def test_what_is_not_finite_or_missing_is_left_out() -> None:
    assert fired(engine("early(loss, 4) == 3"), [None, 3, float("nan"), None, 3, 3]) == [4]


def test_per_layer() -> None:
    watcher = engine("any(act.std > 3 * early(act.std, 2))")
    rows = [(1, 10), (1, 10), (2, 20), (2, 31)]
    found = [
        watcher.evaluate(
            Frame(step, vectors={"act.std": Vector(np.array(row, np.float32), np.ones(2, np.bool_))})
        )
        for step, row in enumerate(rows)
    ]
    assert [bool(changes) for changes in found] == [False, False, False, True]
    assert found[-1][0].evidence is not None
    assert found[-1][0].evidence.layers == ("b",)


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_it_goes_on_from_a_saved_state(cut: int) -> None:
    losses: list[float | None] = [5.0, 4.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 11.0]
    before, after = engine("loss > 2 * early(loss, 3)"), engine("loss > 2 * early(loss, 3)")
    fired(before, losses[:cut])
    after.load_state_dict(before.state_dict())
    assert fired(after, losses[cut:], cut) == [11]
