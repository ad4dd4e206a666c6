"""A guard whose state was saved goes on as if the training had never been interrupted."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stepguard.errors import StepguardWarning, TrainingHalted
from stepguard.recover.recovery import Observation

STEPS = 60
RULES = """
- {name: warm, when: "mean(loss, 20) > 1", for: 5, settle: 10, action: [{lower_lr: {by: 0.9}}, warn]}
- {name: grown, when: "growth(act.std, 15) > 1.02", for: 3, keep: 4}
- {name: moved, when: "delta(weight.norm, 25) > 0.05"}
- {name: bad, when: loss > 5, settle: 8, action: [{skip: {times: 2}}, {lower_lr: {by: 0.5}}, warn]}
- {name: late, when: loss > 0, active: 50%..}
"""


def told(observation: Observation) -> str:
    """What was seen but for the time that the step took, in a form in which NaN is equal to NaN."""
    observation.frame.scalars.pop("step_time", None)
    return repr((observation.frame.step, observation.changes, observation.decision, observation.cured))


def saved(training: Any, guard: Any) -> dict[str, Any]:
    """A checkpoint as people write it, through a file's bytes."""
    checkpoint = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "generator": torch.get_rng_state(),
        "guard": guard.state_dict(),
        "now": training.now,
    }
    return pickle.loads(pickle.dumps(checkpoint))


def resumed(training: Callable[[], Any], checkpoint: dict[str, Any]) -> Any:
    made = training()
    made.model.load_state_dict(checkpoint["model"])
    made.optimizer.load_state_dict(checkpoint["optimizer"])
    made.now = checkpoint["now"]
    torch.set_rng_state(checkpoint["generator"])
    return made


def poisoned(training: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        made = training()
        made.factors = dict.fromkeys((20, 22, 24, 40), 8.0)
        return made

    return make


@pytest.mark.parametrize("at", [1, 21, 23, 30, 47])
@pytest.mark.parametrize("every", [1, "auto"])
def test_the_alerts_and_decisions_are_those_of_a_run_without_a_break(
    training, watched, rules, at: int, every
) -> None:
    make, file = poisoned(training), rules(RULES)
    options = {"rules": file, "every": every, "total_steps": STEPS}
    whole = make()
    session = watched(whole, **options)
    whole.run(STEPS, session.guard.step)
    expected = [told(observation) for observation in session.seen]
    assert len(session.guard.decisions) > 5
    assert {alert.rule for alert in session.guard.alerts} == {"warm", "grown", "moved", "bad", "late"}

    first = make()
    before = watched(first, **options)
    first.run(at, before.guard.step)
    checkpoint = saved(first, before.guard)
    before.guard.close()
    second = resumed(make, checkpoint)
    after = watched(second, **options)
    after.guard.load_state_dict(checkpoint["guard"])
    second.run(STEPS - at, after.guard.step)
    assert [told(observation) for observation in (*before.seen, *after.seen)] == expected
    assert second.state() == whole.state()
    curves = [guard.state_dict()["curve"]["losses"].tolist() for guard in (session.guard, after.guard)]
    assert len(curves[0]) == STEPS
    assert repr(curves[0]) == repr(curves[1]), "also of the losses that challengers are compared by"


def test_a_state_may_be_loaded_into_a_guard_that_has_seen_steps(training, watched, rules) -> None:
    file = rules(RULES)
    first = training()
    before = watched(first, rules=file, total_steps=STEPS)
    first.run(25, before.guard.step)
    state = pickle.loads(pickle.dumps(before.guard.state_dict()))
    first.run(20, before.guard.step)
    second = training()
    after = watched(second, rules=file, total_steps=STEPS)
    second.run(3, after.guard.step)
    after.guard.load_state_dict(state)
    second.run(1, after.guard.step)
    assert [observation.frame.step for observation in after.seen] == [0, 1, 2, 25]


def test_the_state_of_a_guard_that_has_seen_nothing(training, watched, rules) -> None:
    first = watched(training(), rules=rules(RULES), total_steps=STEPS)
    guarded = training()
    second = watched(guarded, rules=rules(RULES), total_steps=STEPS)
    second.guard.load_state_dict(pickle.loads(pickle.dumps(first.guard.state_dict())))
    guarded.run(2, second.guard.step)
    assert [observation.frame.step for observation in second.seen] == [0, 1]


def test_a_saved_state_is_not_changed_by_what_comes_after(training, watched, rules) -> None:
    guarded = training()
    session = watched(guarded, rules=rules(RULES), total_steps=STEPS)
    guarded.run(30, session.guard.step)
    state = session.guard.state_dict()
    before = pickle.dumps(state)
    guarded.run(30, session.guard.step)
    assert pickle.dumps(state) == before


def test_a_resumed_ladder_goes_on_at_its_rung(training, watched, rules) -> None:
    file = rules("- {name: hot, when: loss > 0, settle: 5, action: [{lower_lr: {by: 0.9}}, halt]}")
    first = training()
    before = watched(first, rules=file)
    first.run(3, before.guard.step)
    second = training()
    after = watched(second, rules=file)
    after.guard.load_state_dict(before.guard.state_dict())
    with pytest.raises(TrainingHalted) as raised:
        second.run(10, after.guard.step)
    assert raised.value.step == 5


@pytest.mark.parametrize("seen", [0, 2])
def test_the_state_of_another_model_is_refused_and_the_guard_goes_on(
    training, watched, rules, seen: int
) -> None:
    file = rules("- {name: std, when: 'mean(act.std, 3) > 0'}\n- {name: hot, when: loss > 0, for: 4}")
    first = training()
    before = watched(first, rules=file)
    first.run(5, before.guard.step)
    other = training(net=lambda: torch.nn.Linear(8, 3))
    after = watched(other, rules=file, on_error="warn")
    other.run(seen, after.guard.step)
    with pytest.warns(
        StepguardWarning, match=r"another model \(layer 0: expected \['Linear', .*, got \['0',"
    ):
        after.guard.load_state_dict(before.guard.state_dict())
        other.run(8, after.guard.step)
    assert [observation.frame.step for observation in after.seen] == [*range(seen), *range(5, 13)]
    assert {alert.rule for alert in after.guard.alerts} == {"std", "hot"}


def test_a_state_that_was_loaded_and_not_used_yet_is_saved_again(training, watched, rules) -> None:
    file = rules(RULES)
    first = training()
    before = watched(first, rules=file, total_steps=STEPS)
    first.run(25, before.guard.step)
    after = watched(training(), rules=file, total_steps=STEPS)
    after.guard.load_state_dict(before.guard.state_dict())
    assert pickle.dumps(after.guard.state_dict()) == pickle.dumps(before.guard.state_dict())
