from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.engine import Engine
from stepguard.errors import Place
from stepguard.recover.attempt import Attempt
from stepguard.recover.curve import Curve
from stepguard.recover.decision import Decision
from stepguard.recover.prescription import Findings, prescribe
from stepguard.recover.recovery import Observation, Recovery
from stepguard.rules.expression import compile_condition
from stepguard.rules.rule import Action, Rule, Ruleset
from stepguard.signals import Frame, Layer, Vector

LAYERS = (Layer("a", "Linear"), Layer("b", "Linear"))


def rule(name: str, when: str, *ladder: Action, settle: int = 3, hold: int = 1, message: str = "") -> Rule:
    return Rule(
        name,
        compile_condition(when),
        Place("r.yaml", 1, 1),
        hold=hold,
        ladder=ladder,
        settle=settle,
        message=message,
    )


RULES = [
    rule("hot", "loss > 2", Action("lower_lr", {"by": 0.5}, 2), Action("halt"), message="loss {value:g}"),
    rule("nan", "nonfinite(loss)", Action("skip", {}, 2), Action("restart", {"lr": 0.5}), Action("halt")),
    rule("std", "act.std > 2", Action("warn"), hold=2, message="{layer} has {value}"),
    rule("grown", "growth(loss, 2) > 1.5", Action("notify"), settle=2),
]


def a_recovery(
    rules: Sequence[Rule] = RULES, attempt: Attempt | None = None, *, dry_run: bool = False
) -> Recovery:
    return Recovery(Engine(Ruleset(tuple(rules)), LAYERS, 100), attempt or Attempt(), dry_run=dry_run)


def frame(step: int, loss: float, stds: Sequence[float] = (1.0, 1.0)) -> Frame:
    return Frame(step, {"loss": loss}, {"act.std": Vector(np.array(stds, np.float32), np.ones(2, np.bool_))})


losses = st.sampled_from([0.5, 1.0, 2.5, 4.0, math.nan, math.inf])
stds = st.tuples(st.sampled_from([1.0, 3.0, math.nan]), st.sampled_from([1.0, 3.0]))
trainings = st.lists(st.tuples(losses, stds), min_size=1, max_size=25)
Training = list[tuple[float, tuple[float, float]]]


def told(observation: Observation) -> str:
    """All that was seen and decided, in a form in which NaN is equal to NaN."""
    return repr((observation.changes, observation.decision, observation.cured))


def observe(recovery: Recovery, training: Training, first: int = 0) -> list[str]:
    steps = enumerate(training, first)
    return [told(recovery.observe(frame(step, loss, std))) for step, (loss, std) in steps]


@given(trainings, st.integers(0, 25))
def test_taken_up_in_the_middle_it_goes_on_as_if_nothing_had_happened(training: Training, at: int) -> None:
    whole = observe(a_recovery(), training)
    before, after = a_recovery(), a_recovery()
    first = observe(before, training[:at])
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    assert first + observe(after, training[at:], at) == whole


@given(trainings)
def test_the_same_frames_give_the_same_decisions(training: Training) -> None:
    assert observe(a_recovery(), training) == observe(a_recovery(), training)


@given(trainings)
def test_a_dry_run_sees_and_decides_the_same(training: Training) -> None:
    dry = observe(a_recovery(dry_run=True), training)
    assert [each.replace("dry_run=True", "dry_run=False") for each in dry] == observe(a_recovery(), training)


def decisions(recovery: Recovery, losses: Sequence[float]) -> list[Decision]:
    made = [recovery.observe(frame(step, loss)).decision for step, loss in enumerate(losses)]
    return [decision for decision in made if decision is not None]


def test_an_observation_holds_frame_layers_changes_decision_and_cures() -> None:
    recovery = a_recovery()
    given_ = frame(0, 3.0)
    observation = recovery.observe(given_)
    assert observation.frame is given_
    assert observation.layers == LAYERS
    assert [(change.rule, change.state) for change in observation.changes] == [("hot", "firing")]
    assert observation.decision is not None
    assert observation.decision.reason == "loss 3"
    assert observation.decision.settings == {"by": 0.5}
    cured = [recovery.observe(frame(step, 1.0)).cured for step in range(1, 6)]
    assert cured == [(), (), ("hot",), (), ()]


def test_the_decision_names_the_first_layer_that_fires() -> None:
    rules = [rule("std", "act.std > 2", Action("halt")), rule("any", "any(act.std > 2)", Action("lower_lr"))]
    decision = a_recovery(rules[:1]).observe(frame(0, 1.0, (1.0, 3.0))).decision
    assert decision is not None
    assert decision.layer == "b"
    decision = a_recovery(rules[1:]).observe(frame(0, 1.0, (3.0, 3.0))).decision
    assert decision is not None
    assert decision.layer == "a"
    decision = a_recovery().observe(frame(0, 3.0)).decision
    assert decision is not None
    assert decision.layer is None


def test_a_later_decision_keeps_the_reason_of_the_alert() -> None:
    made = decisions(a_recovery(), [3.0] * 7)
    assert [(decision.step, decision.kind) for decision in made] == [
        (0, "lower_lr"),
        (3, "lower_lr"),
        (6, "halt"),
    ]
    assert {decision.reason for decision in made} == {"loss 3"}


def test_attempts_run_through_a_ladder_of_restarts() -> None:
    only = rule("hot", "loss > 2", Action("restart", {"lr": 0.5}, 2), Action("halt"))
    attempt, kinds = Attempt(), list[str]()
    for _ in range(3):
        recovery = a_recovery([only], attempt)
        (decision,) = decisions(recovery, [1.0, 3.0])
        kinds.append(decision.kind)
        attempt.standings = recovery.standings
        attempt = attempt.next(decision.settings)
    assert kinds == ["restart", "restart", "halt"]
    assert attempt.lr_scale == 0.25


AUTO = rule("hot", "loss > 2", Action("restart"))


def test_restart_auto_has_its_remedy_in_the_decision() -> None:
    (decision,) = decisions(a_recovery([AUTO]), [3.0])
    assert decision.kind == "restart"
    assert decision.settings == prescribe(Findings(), Attempt()), "nothing was measured but the loss"


def test_a_remedy_that_the_rule_names_is_taken_as_it_is() -> None:
    (decision,) = decisions(a_recovery([rule("hot", "loss > 2", Action("restart", {"lr": 0.7}))]), [3.0])
    assert decision.settings == {"lr": 0.7}


@pytest.mark.parametrize(
    ("step", "loss", "attempt", "kind"),
    [
        (89, 3.0, Attempt(number=2, pace=0.01), "restart"),
        (90, 3.0, Attempt(number=2, pace=0.01), "warn"),
        (90, math.nan, Attempt(number=2, pace=0.01), "restart"),
        (90, 3.0, Attempt(), "restart"),
        (49, 3.0, Attempt(number=3, pace=0.03, best=Curve()), "restart"),
        (50, 3.0, Attempt(number=3, pace=0.03, best=Curve()), "warn"),
        (50, math.inf, Attempt(number=3, pace=0.03, best=Curve()), "restart"),
    ],
    ids=[
        "before its last tenth",
        "in its last tenth",
        "what is not finite",
        "at a rate that is not sought",
        "a challenger before it comes half-way",
        "a challenger that has come half-way",
        "a challenger that is not finite",
    ],
)
def test_what_comes_to_an_end_by_itself_is_not_restarted(
    step: int, loss: float, attempt: Attempt, kind: str
) -> None:
    """Of a length of 100 steps."""
    rules = [rule("blown", "loss > 2", Action("restart"), settle=9)]
    rules += [rule("nan", "nonfinite(loss)", Action("restart"), settle=9)]
    decision = a_recovery(rules, attempt).observe(frame(step, loss)).decision
    assert decision is not None
    assert decision.kind == kind
    assert bool(decision.settings) == (kind == "restart")
