"""The remedy of `restart: auto`: made from what was measured, and from what was tried."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepguard.recover.attempt import Attempt
from stepguard.recover.prescription import AIM, Findings, prescribe
from stepguard.signals import Frame, Vector


def frame(step: int, **signals: list[float]) -> Frame:
    vectors = {
        name.replace("_", ".", 1): Vector(np.array(values, np.float32), np.ones(len(values), np.bool_))
        for name, values in signals.items()
    }
    return Frame(step, {"loss": 1.0}, vectors)


def found(*paces: float, loss: float = 1.0, **first: list[float]) -> Findings:
    """Findings of an attempt whose layers all moved by these shares, step by step, at this loss."""
    findings = Findings()
    findings.see(frame(0, **({"act_std": [1.0, 1.0, 1.0], "grad_rms": [0.1, 0.1, 0.1]} | first)))
    for step, pace in enumerate(paces, 1):
        seen = frame(step, act_std=[1.0] * 3, update_ratio=[pace] * 3)
        seen.scalars["loss"] = loss
        findings.see(seen)
    return findings


def test_updates_that_are_too_large_lower_the_learning_rate_to_where_they_are_right() -> None:
    assert prescribe(found(0.3, 0.2, 0.1), Attempt())["lr"] == pytest.approx(
        AIM / (0.3 / np.sqrt(1 - 0.09)), rel=0.05
    )


def test_an_update_that_replaces_the_weights_is_seen_as_many_times_their_size() -> None:
    """0.995 of the new weights are the update: ten times the old ones."""
    assert prescribe(found(0.995), Attempt())["lr"] == pytest.approx(AIM / 10, rel=0.05)


def test_updates_that_are_too_small_raise_it() -> None:
    assert prescribe(found(*[1e-7] * 60), Attempt())["lr"] == pytest.approx(1e4)
    assert prescribe(found(*[1e-4] * 60), Attempt())["lr"] == pytest.approx(AIM / 1e-4)


def test_a_late_explosion_is_seen_too_but_its_size_says_little() -> None:
    assert prescribe(found(*[0.01] * 80, 0.9999), Attempt())["lr"] == pytest.approx(0.1)
    assert prescribe(found(*[0.01] * 80, 0.9), Attempt())["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "first",
    [
        {"act_std": [0.0, 0.0, 0.0]},
        {"act_std": [1.0, 30.0, 900.0]},
        {"act_dead": [0.1, 1.0, 0.0]},
        {"act_variation": [0.5, 0.1, 0.001]},
        {"grad_rms": [1e-9, 1e-6, 1e-2]},
        {"grad_rms": [1e3, 1.0, 1e-2]},
    ],
)
def test_what_could_not_learn_as_it_was_initialised_is_initialised_anew_at_its_own_rate(first) -> None:
    remedy = prescribe(found(0.9, **first), Attempt())
    assert remedy["init"] == "lsuv"
    assert remedy["lr"] == 1.0, "the updates tell of the initialisation, not of the rate"


@pytest.mark.parametrize(
    ("mean", "std", "init"),
    [
        (0.0, 1.0, "lsuv"),
        (4.9, 6.0, "lsuv"),
        (0.13, 0.3, "lsuv"),
        (70.0, 215.0, "standardise"),
        (30.0, 1.0, "standardise"),
        (0.0, 1e-3, "standardise"),
    ],
)
def test_what_is_initialised_anew_also_takes_its_steps_on_standardised_inputs_where_they_are_raw(
    mean: float, std: float, init: str
) -> None:
    findings = found(0.9, act_dead=[0.1, 1.0, 0.0])
    assert findings.first is not None
    findings.first.scalars.update({"input.mean": mean, "input.std": std})
    loaded = Findings()
    loaded.load_state_dict(findings.state_dict())
    assert prescribe(findings, Attempt())["init"] == prescribe(loaded, Attempt())["init"] == init


def test_a_model_that_nothing_moves_is_initialised_anew() -> None:
    assert prescribe(found(0.0, 0.0), Attempt())["init"] == "lsuv"


def test_a_model_that_began_well_keeps_its_weights_at_first() -> None:
    """It may have come with weights that were learnt elsewhere."""
    assert "init" not in prescribe(found(0.5), Attempt())


def test_what_ran_away_is_tried_slower_and_what_stood_still_faster() -> None:
    second = Attempt().next(prescribe(found(0.5), Attempt()))
    assert second.pace == AIM
    assert prescribe(found(*[0.01] * 60, 0.9), second)["pace"] == pytest.approx(0.3 * AIM)
    assert prescribe(found(*[0.01] * 60, loss=9.0), second)["pace"] == pytest.approx(0.3 * AIM)
    assert prescribe(found(*[0.01] * 60, loss=float("nan")), second)["pace"] == pytest.approx(0.3 * AIM)
    third = second.next(prescribe(found(*[0.01] * 60), second))
    assert (third.pace, third.init) == (AIM, "lsuv"), "it may be the initialisation"
    assert prescribe(found(*[0.01] * 60), third)["pace"] == pytest.approx(3 * AIM)
    slower = second.next(prescribe(found(*[0.01] * 60, 0.9), second))
    assert prescribe(found(*[0.01] * 60), slower)["pace"] == pytest.approx(3 * AIM)
    again = prescribe(found(*[0.01] * 60, loss=9.0), slower)
    assert (again["pace"], again["init"]) == (0.03 * AIM, "kaiming"), "no faster after damage, and not again"
    assert "lr" not in prescribe(found(*[0.01] * 60), second), "the search begins where the last one did"


def test_a_pace_of_which_a_schedule_leaves_next_to_nothing_makes_up_for_it() -> None:
    second = Attempt(number=2, pace=AIM)
    assert prescribe(found(*[1.25e-4] * 60), second)["pace"] == pytest.approx(0.8)
    assert prescribe(found(*[1e-6] * 60), second)["pace"] == 1.0, "no layer moves further than its weights"
    assert prescribe(found(*[1e-4] * 60, loss=9.0), second)["pace"] == pytest.approx(0.3 * AIM), "it ran away"


@given(st.lists(st.floats(0, 1, width=32), max_size=80), st.integers(0, 4))
def test_every_remedy_changes_something_and_can_be_taken(paces: list[float], tried: int) -> None:
    attempt = Attempt()
    for _ in range(tried):
        attempt = attempt.next(prescribe(found(*paces), attempt))
    remedy = prescribe(found(*paces), attempt)
    assert 1e-4 <= float(remedy.get("lr", 1.0)) <= 1e4
    assert 0 < float(remedy["pace"]) <= 1.0
    after = attempt.next(remedy)
    assert after.clip == 1.0
    names = ("lr_scale", "init", "clip", "pace", "seed")
    assert any(getattr(after, name) != getattr(attempt, name) for name in names)


@given(st.lists(st.floats(0, 1, width=32), max_size=70))
def test_findings_that_are_saved_and_loaded_give_the_same_remedy(paces: list[float]) -> None:
    saved, loaded = found(*paces, act_dead=[0.0, 1.0, 0.5]), Findings()
    loaded.load_state_dict(saved.state_dict())
    assert prescribe(loaded, Attempt()) == prescribe(saved, Attempt())
    for findings in (saved, loaded):
        findings.see(frame(99, update_ratio=[0.9] * 3))
    again = Attempt(number=2, pace=0.01)
    assert prescribe(loaded, again) == prescribe(saved, again)


def test_nothing_measured_is_no_reason_to_fail() -> None:
    assert prescribe(Findings(), Attempt())["lr"] == 0.3


@pytest.mark.parametrize(
    ("late", "pace"),
    [
        ({}, 3 * AIM),
        ({"act_std": [3.5, 3.5, 3.5]}, 0.3 * AIM),
        ({"act_dead": [0.0, 1.0, 0.0]}, 0.3 * AIM),
        ({"act_variation": [0.5, 0.5, 0.001]}, 0.3 * AIM),
    ],
    ids=["as it began", "its std has changed threefold", "a layer died", "it says the same to all"],
)
def test_what_its_own_steps_have_spoiled_is_tried_slower(late: dict[str, list[float]], pace: float) -> None:
    findings = found(*[0.01] * 20)
    findings.see(frame(30, update_ratio=[0.01] * 3, **late))
    remedy = prescribe(findings, Attempt(number=2, pace=AIM, init="lsuv"))
    assert remedy["pace"] == pytest.approx(pace)


@pytest.mark.parametrize(
    ("paces", "first", "last", "doubtful"),
    [
        ([0.95], {}, 0.3, True),
        ([0.95], {}, 0.2, False),
        ([0.2], {}, 0.95, True),
        ([0.2], {}, 0.85, False),
        ([0.01], {"act_dead": [0.1, 1.0, 0.0]}, 0.3, True),
        ([0.01], {}, 0.95, False),
        ([], {}, 0.95, False),
        ([0.2], {}, float("inf"), True),
    ],
)
def test_doubtful_is_what_learned_little_for_a_reason(
    paces: list[float], first: dict[str, list[float]], last: float, doubtful: bool
) -> None:
    findings = found(*paces, *[0.01] * (60 if paces else 0), **first)
    for by in (1e-6, 1.0, 1e6):
        assert findings.doubtful(by, by * last) == doubtful


@pytest.mark.parametrize(
    ("paces", "last", "doubtful"),
    [([5e-5] * 60, 0.5, True), ([5e-5] * 60, 0.2, False), ([5e-5] * 30 + [1e-3] * 50, 0.5, False)],
    ids=["too small from first to last", "it learned much all the same", "at first only"],
)
def test_after_a_restart_updates_that_are_too_small_are_a_reason_too(
    paces: list[float], last: float, doubtful: bool
) -> None:
    assert found(*paces).doubtful(1.0, last, again=True) == doubtful
    assert not found(*paces).doubtful(1.0, last), "a trained model may be meant to move by so little"
