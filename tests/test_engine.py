from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.engine import Engine
from stepguard.rules.alert import Change
from stepguard.rules.packs import load_rules, pack_names
from stepguard.rules.rule import Ruleset
from stepguard.signals import Frame, Layer, Vector

LAYERS = (
    Layer("features.0", "Conv2d"),
    Layer("features.1", "ReLU"),
    Layer("body", "Linear"),
    Layer("head", "Linear"),
)


@pytest.fixture
def ruleset(tmp_path: Path):
    def load(text: str) -> Ruleset:
        path = tmp_path / "rules.yaml"
        lines = "\n".join(f"  {line}" for line in text.splitlines())
        path.write_text(f"version: 1\nrules:\n{lines}\n", encoding="utf-8")
        return load_rules(path)

    return load


def vector(values: Sequence[float | None]) -> Vector:
    known = np.array([value is not None for value in values])
    return Vector(np.array([0.0 if value is None else value for value in values], np.float32), known)


def frame(step: int, loss: float | None = None, **vectors: Sequence[float | None]) -> Frame:
    """A frame; `act_std=[...]` is the vector of `act.std`."""
    scalars = {} if loss is None else {"loss": loss}
    return Frame(step, scalars, {name.replace("_", ".", 1): vector(each) for name, each in vectors.items()})


def run(engine: Engine, frames: Sequence[Frame]) -> list[tuple[int, str, str | None, str]]:
    changes = [change for each in frames for change in engine.evaluate(each)]
    return [(change.step, change.rule, change.layer, change.state) for change in changes]


def losses(*values: float | None) -> list[Frame]:
    return [frame(step, value) for step, value in enumerate(values)]


def test_frames_go_in_and_changes_of_alerts_come_out(ruleset) -> None:
    engine = Engine(ruleset("- {name: hot, when: loss > 1, for: 2, keep: 1}"), LAYERS)
    seen = run(engine, losses(0, 2, 2, 2, 0, 0, 2, 0))
    assert seen == [
        (1, "hot", None, "pending"),
        (2, "hot", None, "firing"),
        (5, "hot", None, "inactive"),
        (6, "hot", None, "pending"),
        (7, "hot", None, "inactive"),
    ]


def test_a_rule_of_the_run_has_one_alert_and_one_of_layers_one_for_each(ruleset) -> None:
    rules = ruleset(
        "- {name: each, when: act.std > 1}\n"
        "- {name: some, when: any(act.std > 1)}\n"
        "- {name: run, when: loss > 1}"
    )
    engine = Engine(rules, LAYERS)
    seen = run(engine, [frame(0, 2, act_std=[2, 0, 2, 0]), frame(1, 2, act_std=[0, 0, 2, 2])])
    assert seen == [
        (0, "each", "features.0", "firing"),
        (0, "each", "body", "firing"),
        (0, "some", None, "firing"),
        (0, "run", None, "firing"),
        (1, "each", "features.0", "inactive"),
        (1, "each", "head", "firing"),
    ]


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("{}", ["features.0", "features.1", "body", "head"]),
        ("{type: Linear}", ["body", "head"]),
        ("{type: [Conv2d, Linear]}", ["features.0", "body", "head"]),
        ('{type: "*ReLU*"}', ["features.1"]),
        ('{name: "features.*"}', ["features.0", "features.1"]),
        ('{name: "features.*", type: Conv2d}', ["features.0"]),
        ("{type: Linear, not: head}", ["body"]),
        ("{not: [head, Conv2d]}", ["features.1", "body"]),
        ("{type: Nothing}", []),
    ],
)
def test_a_filter_chooses_the_layers(ruleset, chosen: str, names: list[str]) -> None:
    rules = ruleset(
        f"- {{name: each, when: act.std > 1, layers: {chosen}}}\n"
        f"- {{name: any, when: any(act.std > 1), layers: {chosen}, message: '{{layers}} of {{total}}'}}"
    )
    changes = Engine(rules, LAYERS).evaluate(frame(0, act_std=[2, 2, 2, 2]))
    assert [change.layer for change in changes if change.rule == "each"] == names
    counted = [change for change in changes if change.rule == "any"]
    assert len(counted) == bool(names)
    for change in counted:
        assert change.message == f"{len(names)} of {len(names)}"
        assert change.evidence is not None
        assert change.evidence.layers == tuple(names)


def test_what_was_not_measured_makes_nothing_true_and_ends_nothing(ruleset) -> None:
    engine = Engine(ruleset("- {name: hot, when: loss > 1, for: 2}"), LAYERS)
    seen = run(engine, losses(2, None, 2, None, math.nan, None, 0))
    assert seen == [(0, "hot", None, "pending"), (2, "hot", None, "firing"), (6, "hot", None, "inactive")]


def test_a_layer_that_was_not_measured_is_unknown_alone(ruleset) -> None:
    engine = Engine(ruleset("- {name: std, when: act.std > 1}"), LAYERS)
    seen = run(engine, [frame(0, act_std=[2, None, 2, 0]), frame(1, act_std=[None, 2, 0, 0])])
    assert seen == [
        (0, "std", "features.0", "firing"),
        (0, "std", "body", "firing"),
        (1, "std", "features.1", "firing"),
        (1, "std", "body", "inactive"),
    ]


def test_a_rule_is_awake_only_between_its_steps(ruleset) -> None:
    engine = Engine(ruleset("- {name: hot, when: loss > 1, active: 2..3}"), LAYERS)
    assert run(engine, losses(2, 2, 2, 2, 2, 2)) == [
        (2, "hot", None, "firing"),
        (4, "hot", None, "inactive"),
    ]


PERCENT = "- {name: early, when: loss > 1, active: ..30%}\n- {name: late, when: loss > 1, active: 50%..}"


def test_a_rule_in_percent_sleeps_where_the_length_of_the_run_is_not_known(ruleset) -> None:
    engine = Engine(ruleset(PERCENT + "\n- {name: always, when: loss > 1}"), LAYERS)
    assert [rule.name for rule in engine.sleeping()] == ["early", "late"]
    assert {rule for _, rule, _, _ in run(engine, losses(*[2.0] * 20))} == {"always"}


def test_a_rule_in_percent_wakes_where_it_is(ruleset) -> None:
    engine = Engine(ruleset(PERCENT), LAYERS, total_steps=10)
    assert list(engine.sleeping()) == []
    assert run(engine, losses(*[2.0] * 8)) == [
        (0, "early", None, "firing"),
        (4, "early", None, "inactive"),
        (5, "late", None, "firing"),
    ]


def test_progress_is_known_with_the_length_of_the_run(ruleset) -> None:
    rules = ruleset("- {name: second-half, when: progress >= 0.5 and loss > 1}")
    assert run(Engine(rules, LAYERS), losses(*[2.0] * 8)) == []
    assert run(Engine(rules, LAYERS, 8), losses(*[2.0] * 8)) == [(4, "second-half", None, "firing")]


# Evidence


def the_alert(changes: Sequence[Change]) -> Change:
    (change,) = [change for change in changes if change.state == "firing"]
    assert change.evidence is not None
    return change


def test_the_evidence_of_a_layer_is_that_of_the_layer(ruleset) -> None:
    rules = ruleset(
        '- {name: std, when: act.std > 4, severity: critical, message: "{layer}: {value} at {step}"}'
    )
    engine = Engine(rules, LAYERS)
    for step in range(3):
        assert engine.evaluate(frame(step, act_std=[1, 1, step + 1, None])) == []
    change = the_alert(engine.evaluate(frame(3, act_std=[1, 1, 5, None])))
    assert (change.step, change.rule, change.layer, change.severity) == (3, "std", "body", "critical")
    assert change.message == "body: 5.0 at 3"
    assert change.evidence.signal == "act.std"
    assert change.evidence.value == 5
    assert (change.evidence.steps, change.evidence.values) == ((0, 1, 2, 3), (1, 2, 3, 5))
    assert change.evidence.layers == ("body",)
    assert change.evidence.total == 3


def test_the_evidence_of_the_run_names_the_layers_that_make_it_true(ruleset) -> None:
    rules = ruleset(
        "- name: crash\n"
        "  when: share(crash(act.std, rise=3, fall=3, within=60)) >= 0.5\n"
        '  message: "{layers} of {total}, {share:.0%}, {layer}: {rise:.0f} up, {fall:.0f} down to {value}"'
    )
    engine = Engine(rules, LAYERS)
    assert engine.evaluate(frame(0, act_std=[1, 2, 1, 1])) == []
    assert engine.evaluate(frame(1, act_std=[1, 20, 8, 1])) == []
    assert engine.evaluate(frame(2, act_std=[1, 20, 8, 1])) == []
    change = the_alert(engine.evaluate(frame(3, act_std=[1, 2, 0.5, 1])))
    assert change.layer is None
    assert change.message == "2 of 4, 50%, features.1: 10 up, 10 down to 2.0"
    assert change.evidence.layers == ("features.1", "body")
    assert change.evidence.total == 4
    assert change.evidence.measures == {"rise": 10, "fall": 10, "peak": 20}
    assert (change.evidence.steps, change.evidence.values) == ((0, 1, 2, 3), (2, 20, 20, 2))


def test_a_rule_about_the_run_alone_names_no_layer(ruleset) -> None:
    rules = ruleset('- {name: nan, when: nonfinite(loss), message: "the loss is {value}"}')
    engine = Engine(rules, LAYERS)
    engine.evaluate(frame(0, 1.0))
    change = the_alert(engine.evaluate(frame(1, math.inf)))
    assert change.message == "the loss is inf"
    assert change.evidence.layers == ()
    assert change.evidence.total == 0
    assert change.evidence.steps == (0, 1)
    assert change.evidence.values[0] == 1.0
    assert math.isnan(change.evidence.values[1])


def test_only_an_alert_that_fires_has_message_and_evidence(ruleset) -> None:
    engine = Engine(ruleset('- {name: hot, when: loss > 1, for: 2, message: "it is hot"}'), LAYERS)
    pending, firing, over = [engine.evaluate(each) for each in losses(2, 2, 0)]
    assert [(change.message, change.evidence) for change in pending + over] == [("", None)] * 2
    assert firing[0].message == "it is hot"


# A rule that fails while it runs


BROKEN = (
    "- {name: first, when: loss > 1}\n"
    "- {name: broken, when: act.std > 1}\n"
    "- {name: windowed, when: 'mean(act.std, 2) > 1'}\n"
    "- {name: last, when: grad.norm > 1}"
)


def other_shape(step: int) -> Frame:
    """A frame whose act.std has more layers than there are."""
    return frame(step, 2, act_std=[2] * 7, grad_norm=[0, 0, 2, 0])


def test_a_rule_that_fails_is_marked_and_the_others_go_on(ruleset) -> None:
    engine = Engine(ruleset(BROKEN), LAYERS)
    assert run(engine, [other_shape(0)]) == [(0, "first", None, "firing"), (0, "last", "body", "firing")]
    failures = engine.take_failures()
    assert [name for name, _ in failures] == ["broken", "windowed"]
    assert all("shape" in reason for _, reason in failures)
    assert engine.take_failures() == []
    assert run(engine, [frame(1, 0, act_std=[2] * 4, grad_norm=[0] * 4)]) == [
        (1, "first", None, "inactive"),
        (1, "last", "body", "inactive"),
    ]
    run(engine, [other_shape(2)])
    assert engine.take_failures() == [], "what failed is left out, and not reported again"


def test_a_rule_that_fails_while_it_fires_does_not_fire_for_ever(ruleset) -> None:
    engine = Engine(ruleset("- {name: broken, when: act.std > 1}"), LAYERS)
    engine.evaluate(frame(0, act_std=[2] * 4))
    assert engine.holding() == engine.firing() == {"broken"}
    engine.evaluate(other_shape(1))
    assert engine.firing() == engine.holding() == frozenset()
    assert engine.quiet


# What the engine says of itself


def test_firing_holding_and_quiet(ruleset) -> None:
    engine = Engine(ruleset("- {name: hot, when: loss > 1, for: 2, keep: 2}"), LAYERS)
    said: list[tuple[bool, bool, bool]] = []
    for each in losses(0, 2, 2, 0, None, 2, 0, 0, 0):
        engine.evaluate(each)
        said.append(("hot" in engine.firing(), "hot" in engine.holding(), engine.quiet))
    firing, holding, quiet = zip(*said, strict=True)
    assert firing == (False, False, True, True, True, True, True, True, False)
    assert holding == (False, False, True, False, False, True, False, False, False)
    assert quiet == (True, False, False, False, False, False, False, False, True)


numbers = st.sampled_from([0.0, 1.0, 2.0, 8.0, math.nan, math.inf, None])
rows = st.lists(numbers, min_size=4, max_size=4)
runs = st.lists(st.tuples(numbers, rows), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Ruleset:
    path = tmp_path_factory.mktemp("rules") / "mixed.yaml"
    path.write_text(
        """
version: 1
rules:
  - {name: each, when: act.std > 1, for: 2, keep: 1}
  - {name: share, when: share(act.std > 1) > 0.4, message: "{layer} {share}"}
  - {name: grown, when: "growth(loss, 2) > 2"}
  - {name: mean, when: "mean(loss, 3) > 1", for: 2}
  - {name: held, when: "held(loss > 1, 2, of=4)"}
  - {name: crash, when: "any(crash(act.std, 2, 2, 6))", active: 2..20}
  - {name: nan, when: nonfinite(loss), keep: 3}
""",
        encoding="utf-8",
    )
    return load_rules(path)


def frames(values: list[tuple[float | None, list[float | None]]], first: int = 0) -> list[Frame]:
    return [frame(step, loss, act_std=stds) for step, (loss, stds) in enumerate(values, first)]


@given(runs)
def test_every_change_is_one_and_they_add_up_to_what_fires(
    mixed: Ruleset, values: list[tuple[float | None, list[float | None]]]
) -> None:
    engine = Engine(mixed, LAYERS)
    states: dict[tuple[str, str | None], str] = {}
    for each in frames(values):
        for change in engine.evaluate(each):
            assert change.step == each.step
            assert change.state != states.get((change.rule, change.layer), "inactive")
            states[change.rule, change.layer] = change.state
        assert engine.firing() == {rule for (rule, _), state in states.items() if state == "firing"}
        assert engine.holding() <= engine.firing()
        assert engine.quiet == all(state == "inactive" for state in states.values())
    assert engine.take_failures() == []


@given(runs, st.integers(0, 25))
def test_taken_up_in_the_middle_it_goes_on_as_if_nothing_had_happened(
    mixed: Ruleset, values: list[tuple[float | None, list[float | None]]], at: int
) -> None:
    def told(engine: Engine, some: list[Frame]) -> list[str]:
        return [repr(engine.evaluate(each)) for each in some]

    whole = told(Engine(mixed, LAYERS), frames(values))
    before, after = Engine(mixed, LAYERS), Engine(mixed, LAYERS)
    first = told(before, frames(values[:at]))
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    assert first + told(after, frames(values[at:], at)) == whole


@given(runs)
def test_frames_are_left_as_they_are(
    mixed: Ruleset, values: list[tuple[float | None, list[float | None]]]
) -> None:
    given_ = frames(values)
    before: Mapping[int, str] = {each.step: repr(each) for each in given_}
    engine = Engine(mixed, LAYERS)
    for each in given_:
        engine.evaluate(each)
    assert {each.step: repr(each) for each in given_} == before


def test_a_state_of_fewer_rules_leaves_the_others_alone(ruleset) -> None:
    one = Engine(ruleset("- {name: hot, when: loss > 1}"), LAYERS)
    one.evaluate(frame(0, 2.0))
    two = Engine(ruleset("- {name: new, when: loss > 1, for: 2}\n- {name: hot, when: loss > 1}"), LAYERS)
    two.load_state_dict(one.state_dict())
    assert two.firing() == {"hot"}
    assert run(two, [frame(1, 2.0)]) == [(1, "new", None, "pending")]


def test_a_model_without_layers_still_has_its_loss(ruleset) -> None:
    rules = ruleset(
        "- {name: std, when: act.std > 1}\n"
        "- {name: any, when: any(act.std > 1)}\n"
        "- {name: hot, when: loss > 1}"
    )
    engine = Engine(rules, ())
    assert run(engine, [frame(0, 2.0)]) == [(0, "hot", None, "firing")]
    assert engine.take_failures() == []


@pytest.mark.parametrize("pack", pack_names())
def test_the_shipped_packs_run_on_frames_with_anything_missing(pack: str) -> None:
    engine = Engine(load_rules(pack), LAYERS, 100)
    for step in range(5):
        engine.evaluate(Frame(step))
    assert engine.quiet
    assert engine.take_failures() == []
