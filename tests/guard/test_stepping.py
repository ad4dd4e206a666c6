"""What a remedy does around each step: it goes on from a checkpoint, and no fault of it ends the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from stepguard.errors import StepguardWarning
from stepguard.guard import stepping
from stepguard.recover import standardised
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.recover.recovery import Observation
from stepguard.recover.trust import TrustRatios

NEVER = "- {name: never, when: loss < -1e30, action: halt}"
REMEDY = Attempt(number=2, init="standardise", pace=0.02, clip=0.5)
Begin = Callable[..., Any]


@pytest.fixture
def begin(training, watched, rules) -> Begin:
    """A training under a guard, with inputs of many sizes, in an attempt."""

    def make(attempt: Attempt | None = None, rule: str = NEVER, **options: Any) -> Any:
        guarded = training()
        token = CURRENT.set(None if attempt is None else copy.copy(attempt))
        try:
            session = watched(guarded, **{"rules": rules(rule), "total_steps": 30, **options})
        finally:
            CURRENT.reset(token)
        units = 10.0 ** torch.arange(-3, 5)
        guarded.batches = [(x * units + units, y) for x, y in guarded.batches]
        return guarded, session.guard

    return make


def checkpoint(guarded: Any, guard: Any) -> dict[str, Any]:
    """What a user keeps of a training."""
    return copy.deepcopy(
        {
            "model": guarded.model.state_dict(),
            "optimizer": guarded.optimizer.state_dict(),
            "guard": guard.state_dict(),
            "generator": torch.get_rng_state(),
            "step": guarded.now,
        }
    )


def load(guarded: Any, guard: Any, kept: dict[str, Any]) -> None:
    guarded.model.load_state_dict(kept["model"])
    guarded.optimizer.load_state_dict(kept["optimizer"])
    guard.load_state_dict(kept["guard"])
    torch.set_rng_state(kept["generator"])
    guarded.now = kept["step"]


@pytest.mark.parametrize("again", [None, REMEDY], ids=["as it comes", "in an attempt of the same remedy"])
def test_a_checkpoint_of_the_users_own_goes_on_bit_for_bit(
    begin: Begin, again: Attempt | None, tmp_path
) -> None:
    guarded, guard = begin(REMEDY)
    guarded.run(12, guard.step)
    torch.save(checkpoint(guarded, guard), tmp_path / "checkpoint.pt")
    guarded.run(12, guard.step)
    expected = guarded.state()
    resumed, other = begin(again)
    load(resumed, other, torch.load(tmp_path / "checkpoint.pt", weights_only=False))
    resumed.run(12, other.step)
    assert resumed.state() == expected


def test_a_state_without_a_remedy_takes_the_one_in_force_away(begin: Begin) -> None:
    guarded, guard = begin()
    guarded.run(3, guard.step)
    kept = checkpoint(guarded, guard)
    guarded.run(3, guard.step)
    resumed, other = begin(Attempt(pace=0.02, clip=0.5))
    load(resumed, other, kept)
    resumed.run(3, other.step)
    assert resumed.state() == guarded.state()


def test_what_a_rule_makes_of_the_learning_rate_holds_for_the_pace(begin: Begin) -> None:
    halves = "- {name: half, when: step == 4, action: {lower_lr: {by: 0.5}}}"
    guarded, guard = begin(Attempt(pace=0.02), rule=halves)
    ratios: list[float] = []

    def see(seen: Observation) -> None:
        if "update.ratio" in seen.frame.vectors:
            ratios.append(seen.frame.vectors["update.ratio"].values[0])

    guard.subscribe(see)
    guarded.run(9, guard.step)
    assert ratios == pytest.approx([0.02] * 4 + [0.01] * 4, rel=0.05)


def _fails(*_: Any, **__: Any) -> None:
    raise ArithmeticError("planted")


FAULTS = {
    "gradients": (standardised._Layer, "gradient", {"init": "lsuv"}),
    "weights": (standardised._Layer, "enter", {"init": "lsuv"}),
    "clipping": (stepping, "clip_gradients", {"clip": None}),
    "copies": (TrustRatios, "enter", {"pace": None}),
    "ratios": (TrustRatios, "leave", {"pace": None}),
}


@pytest.mark.parametrize(("where", "what", "without"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_it_leaves_the_step_as_it_is_without_what_failed(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, where: Any, what: str, without: dict[str, Any]
) -> None:
    """Nothing that was half done stays."""
    remedy = replace(REMEDY, init="standardise", pace=0.02, clip=0.01)
    guarded, guard = begin(remedy, on_error="warn")
    guarded.run(2, guard.step)
    kept = checkpoint(guarded, guard)
    other, second = begin(remedy)
    load(other, second, kept)
    changed = replace(remedy, **without)
    if changed.init == "lsuv":
        kept["guard"]["remedy"]["inputs"] = {}
    kept["guard"]["remedy"] |= {"clip": changed.clip, "pace": changed.pace}
    second.load_state_dict(kept["guard"])
    other.run(1, second.step)
    monkeypatch.setattr(where, what, _fails)
    with pytest.warns(StepguardWarning, match="the training goes on: ArithmeticError: planted"):
        load_generator(kept)
        guarded.run(1, guard.step)
    assert guarded.state() == other.state()


def load_generator(kept: dict[str, Any]) -> None:
    torch.set_rng_state(kept["generator"])
