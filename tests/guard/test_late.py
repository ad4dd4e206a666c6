"""Where the device leaves bad steps out by itself, a step is judged while the next one is under way.

The host stands in for the device: its fused optimizers leave out a step as those of an accelerator do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stepguard
from stepguard.cli import main
from stepguard.recover import deferral
from stepguard.recover.recovery import Observation

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True)
OPTIMIZERS = {
    "SGD": SGD,
    "plain SGD": partial(torch.optim.SGD, lr=0.05, fused=True),
    "Adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05, fused=True),
}
SKIPS = """
- {name: bad-loss, when: nonfinite(loss), action: [skip: {times: 9}, halt]}
- {name: bad-gradient, when: any(grad.nonfinite > 0), action: [skip: {times: 9}, halt]}
"""


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on the host counts as a device."""
    return lambda: monkeypatch.setattr(deferral, "DEVICES", ("cpu",))


@pytest.fixture
def both(training, watched, late) -> Callable[..., tuple[Any, Any]]:
    """The same training twice: judged at once, and late. Each ends closed, or by what its rules raise."""

    def run(steps: int, make: Any = SGD, factors: Any = (), **options: Any) -> tuple[Any, Any]:
        pair: list[Any] = []
        for begin in (lambda: None, late):
            begin()
            one = training(make)
            one.factors = dict(factors)
            one.seen = watched(one, **options)
            one.ended = None
            try:
                one.run(steps, one.seen.guard.step)
            except stepguard.TrainingHalted as end:
                one.ended = end
            one.seen.guard.close()
            pair.append(one)
        return pair[0], pair[1]

    return run


def weights(one: Any) -> dict[str, Any]:
    """All but the generator's state and what the guard adds."""
    return {path: leaf for path, leaf in one.state().items() if not path.startswith("/2")}


def told(observation: Observation) -> tuple[Any, ...]:
    frame, changes = observation.frame, observation.changes
    own = [(change.step, change.rule, change.layer, change.state) for change in changes]
    decision = observation.decision
    return frame.step, own, None if decision is None else (decision.step, decision.kind)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 3, "auto"])
def test_a_healthy_training_is_the_same_and_so_is_what_is_seen_of_it(both, name: str, every: Any) -> None:
    at_once, late = both(30, OPTIMIZERS[name], every=every)
    assert weights(late) == weights(at_once)
    assert len(late.seen.seen) == 30
    for one, other in zip(late.seen.seen, at_once.seen.seen, strict=True):
        assert told(one) == told(other)
        assert one.frame.scalars.keys() == other.frame.scalars.keys()
        assert one.frame.vectors.keys() == other.frame.vectors.keys()
        for signal, vector in one.frame.vectors.items():
            expected = other.frame.vectors[signal]
            np.testing.assert_array_equal(vector.known, expected.known)
            np.testing.assert_allclose(vector.values, expected.values, rtol=1e-6, err_msg=signal)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 5], ids=["measured", "not measured"])
def test_a_bad_step_reaches_no_weights_no_state_and_no_buffers(both, rules, name: str, every: int) -> None:
    bad = {7: math.nan, 8: math.inf, 13: math.nan}
    at_once, late = both(20, OPTIMIZERS[name], bad, rules=rules(SKIPS), every=every)
    assert late.seen.decided() == at_once.seen.decided()
    assert [step for step, _, kind in late.seen.decided() if kind == "skip"] == [7, 8, 13]
    learned = [{p: leaf for p, leaf in weights(one).items() if not _of_buffers(p)} for one in (late, at_once)]
    assert learned[0] == learned[1]
    assert all(buffer.isfinite().all() for buffer in late.model.buffers())
    # Where not each step is measured, buffers that are put back at once go back to the last one that was.
    assert every > 1 or weights(late) == weights(at_once)
    assert late.model[1].num_batches_tracked == 20 - len(bad)


def _of_buffers(path: str) -> bool:
    return "running" in path or "tracked" in path


def test_it_comes_one_step_later(training, watched, late, rules) -> None:
    late()
    one = training(SGD)
    seen = watched(one, rules=rules(SKIPS))
    one.run(1, seen.guard.step)
    assert len(seen.seen) == 1  # a fused SGD without momentum yet is judged at once
    one.run(3, seen.guard.step)
    assert [each.frame.step for each in seen.seen] == [0, 1, 2]
    seen.guard.close()
    assert [each.frame.step for each in seen.seen] == [0, 1, 2, 3]


def test_the_very_first_step_may_be_bad(both, rules) -> None:
    at_once, late = both(6, SGD, {0: math.nan}, rules=rules(SKIPS), every=1)
    assert weights(late) == weights(at_once)
    assert late.seen.decided() == at_once.seen.decided()


class Log(nn.Module):
    """Not finite below zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_the_layer_that_was_bad_between_two_measurements_is_named(watched, late, rules) -> None:
    late()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6, bias=False), Log(), nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in model[:2].parameters():
            parameter.abs_().add_(0.5)

    class One:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    One.model = model
    seen = watched(One, rules=rules(SKIPS), every=4)
    for step in range(8):
        One.optimizer.zero_grad()
        loss = model(torch.rand(16, 4) - (9.0 if step == 6 else 0.0)).square().mean()
        loss.backward()
        seen.guard.step(loss)
    seen.guard.close()
    names = [layer.name for layer in seen.seen[6].layers]
    of_outputs = seen.seen[6].frame.vectors["act.nonfinite"]
    assert [name for name, bad in zip(names, of_outputs.values, strict=True) if bad > 0] == ["3"]
    tensors = dict(zip(names, seen.seen[6].frame.vectors["grad.nonfinite"].values, strict=True))
    assert tensors == {"0": 2, "1": 1, "3": 2}
    assert {(step, kind) for step, _, kind in seen.decided()} == {(6, "skip")}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_what_is_skipped_for_another_reason_is_skipped_one_step_later(training, watched, late, rules) -> None:
    late()
    one = training(SGD)
    one.factors = {5: 1000.0}
    seen = watched(one, rules=rules(SKIPS + "- {name: high, when: loss > 100, action: skip}"), every=1)
    before: list[dict[str, Any]] = []
    for _ in range(8):
        before.append(weights(one))
        one.run(1, seen.guard.step)
    kept = [step for step in range(7) if _parameters(before[step]) == _parameters(before[step + 1])]
    assert seen.decided() == [(5, "high", "skip")]
    assert kept == [6]
    seen.guard.close()
    assert "update.ratio" not in seen.seen[7].frame.vectors
    assert "update.ratio" in seen.seen[6].frame.vectors


def _parameters(state: dict[str, Any]) -> list[Any]:
    return [
        leaf for path, leaf in state.items() if path.startswith("/0") and path.endswith(("weight", "bias"))
    ]


def test_a_halt_ends_it_before_the_next_step_is_taken(both, rules) -> None:
    text = SKIPS + "- {name: high, when: loss > 100, action: halt}"
    at_once, late = both(20, SGD, {5: 1000.0}, rules=rules(text))
    assert at_once.ended.step == late.ended.step == 5
    assert (at_once.now, late.now) == (6, 7)


def test_a_rollback_goes_back_and_leaves_out_what_was_under_way(training, watched, late, rules) -> None:
    late()
    text = SKIPS + "- {name: high, when: loss > 100, action: [rollback: {lr: 0.5, times: 1}, halt]}"
    one = training(SGD)
    one.factors = {300: 1000.0}
    seen = watched(one, rules=rules(text), every=1)
    one.run(310, seen.guard.step)
    seen.guard.close()
    assert seen.decided() == [(300, "high", "rollback")]
    assert seen.guard.decisions[0].to is not None
    assert [each.frame.step for each in seen.seen] == [*range(301), *range(302, 310)]
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert all(each.frame.scalars["loss"] < 2 for each in seen.seen[301:])


def test_a_lower_rate_comes_with_the_next_step(both, rules) -> None:
    text = SKIPS + "- {name: high, when: loss > 100, action: [lower_lr: {by: 0.5, times: 1}, warn]}"
    at_once, late = both(10, SGD, {5: 1000.0}, rules=rules(text))
    assert [each.optimizer.param_groups[0]["lr"] for each in (at_once, late)] == [0.025, 0.025]
    assert late.seen.scalars("lr") == [0.05] * 6 + [0.025] * 4


def test_the_optimizer_is_left_as_it_was(training, watched, late, rules) -> None:
    late()
    one = training(SGD)
    seen = watched(one, rules=rules(SKIPS))
    for _ in range(5):
        one.run(1, seen.guard.step)
        assert not hasattr(one.optimizer, "found_inf")


def test_what_is_saved_knows_the_last_step(training, watched, late, rules) -> None:
    late()
    one = training(SGD)
    one.factors = {9: 1000.0}
    text = SKIPS + "- {name: high, when: loss > 100, action: halt}"
    seen = watched(one, rules=rules(text), every=1)
    one.run(10, seen.guard.step)
    with pytest.raises(stepguard.TrainingHalted):  # what is heard on the way is acted upon
        seen.guard.state_dict()
    assert seen.guard.alerts[-1].step == 9


def test_what_is_saved_after_a_rollback_is_what_it_went_back_to(training, watched, late, rules) -> None:
    late()
    text = SKIPS + "- {name: high, when: loss > 100, action: [rollback: {lr: 0.5, times: 1}, halt]}"
    one = training(OPTIMIZERS["AdamW"])
    one.factors = {300: 1000.0}
    seen = watched(one, rules=rules(text), every=1)
    one.run(301, seen.guard.step)
    assert seen.guard.state_dict()["step"] == 301
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    counts = {float(state["step"]) for state in one.optimizer.state.values()}
    assert counts == {seen.guard.decisions[0].to}
    one.run(5, seen.guard.step)
    seen.guard.close()
    assert [each.frame.step for each in seen.seen] == [*range(306)]


def test_the_last_step_of_a_known_number_is_judged_at_once(training, watched, late, rules) -> None:
    late()
    one = training(SGD)
    one.factors = {9: 1000.0}
    text = SKIPS + "- {name: high, when: loss > 100, action: halt}"
    seen = watched(one, rules=rules(text), total_steps=10)
    with pytest.raises(stepguard.TrainingHalted):
        one.run(10, seen.guard.step)


def test_a_scaler_of_the_trainings_own_is_left_to_do_its_work(training, watched, late) -> None:
    late()
    one = training(OPTIMIZERS["AdamW"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    seen = watched(one)
    for _ in range(5):
        one.optimizer.zero_grad()
        scaler.scale(one.loss()).backward()
        scaler.step(one.optimizer)
        scaler.update()
    assert [each.frame.step for each in seen.seen] == [0, 1, 2, 3, 4]


def test_a_step_that_another_hook_breaks_off_leaves_nothing_behind(training, watched, late, rules) -> None:
    late()
    one = training(OPTIMIZERS["AdamW"])
    seen = watched(one, rules=rules(SKIPS))

    def break_off(*_: Any) -> None:
        raise OSError("another hook")

    handle = one.optimizer.register_step_pre_hook(break_off)
    one.factors = {0: math.nan}
    with pytest.raises(OSError, match="another hook"):
        one.run(1, seen.guard.step)
    handle.remove()
    seen.guard.close()
    before = weights(one)
    one.run(1)
    assert weights(one) != before


def test_a_layer_that_joins_later_has_its_first_momentum_from_a_good_step(watched, late, rules) -> None:
    late()
    torch.manual_seed(0)

    class One:
        model = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        optimizer = SGD(model.parameters())

    seen = watched(One, rules=rules(SKIPS))
    for step in range(5):
        One.optimizer.zero_grad()
        head = One.model["a" if step < 3 else "b"]
        loss = head(torch.randn(8, 4)).mean() * (math.nan if step == 3 else 1.0)
        loss.backward()
        seen.guard.step(loss)
        momentum = One.optimizer.state[One.model["b"].weight].get("momentum_buffer")
        assert momentum is None if step < 4 else momentum.abs().max() < 1
    assert ("b.weight", True) not in [(n, bool(p.isnan().any())) for n, p in One.model.named_parameters()]


def test_no_snapshot_is_taken_while_an_alert_is_firing(training, watched, late, rules, tmp_path) -> None:
    late()
    one = training(OPTIMIZERS["AdamW"])
    one.factors = dict.fromkeys(range(400), 1000.0)
    text = SKIPS + "- {name: high, when: loss > 100, action: [lower_lr: {by: 0.9, times: 900}]}"
    seen = watched(one, rules=rules(text), run=tmp_path / "runs")
    one.run(200, seen.guard.step)
    assert seen.guard.state_dict()["step"] == 200
    assert list(tmp_path.glob("runs/*.snapshots/*certified*")) == []


@pytest.mark.parametrize(
    "case",
    [
        (partial(torch.optim.SGD, lr=0.05), {}),
        (SGD, {"dry_run": True}),
        (SGD, {"rules": "lecture"}),
        (SGD, {"layers": "Linear"}),
        (SGD, {"rules": SKIPS.replace("halt", "warn")}),
        (SGD, {"rules": SKIPS.replace("nonfinite(loss)", "loss > 9")}),
    ],
    ids=[
        "not fused",
        "nothing is done",
        "no rule skips",
        "some layers",
        "a rule lets it pass",
        "the loss may",
    ],
)
def test_where_the_device_cannot_the_step_is_judged_at_once(
    training, watched, late, rules, case: tuple[Any, dict[str, Any]]
) -> None:
    late()
    make, options = case
    if options.get("rules", "").startswith("\n"):
        options = {"rules": rules(options["rules"])}
    one = training(make)
    seen = watched(one, **options)
    one.run(5, seen.guard.step)
    assert len(seen.seen) == 5


def test_a_recorded_run_is_replayed(training, watched, late, tmp_path: Path) -> None:
    late()
    one = training(partial(torch.optim.AdamW, lr=0.01, fused=True))
    one.factors = {40: math.nan, 41: math.nan, 230: math.inf}
    seen = watched(one, run=tmp_path / "runs")
    one.run(260, seen.guard.step)
    seen.guard.close()
    assert [step for step, _, kind in seen.decided() if kind == "skip"] == [40, 41, 230]
    assert main(["replay", str(seen.guard.run_path)]) == 0


def test_a_run_that_broke_off_goes_on(training, watched, late, rules, tmp_path: Path) -> None:
    late()

    def one(**options: Any) -> tuple[Any, Any]:
        made = training(partial(torch.optim.AdamW, lr=0.01, fused=True))
        return made, watched(made, run=tmp_path / "runs", every=1, **options)

    first, seen = one()
    first.run(20, seen.guard.step)
    path = seen.guard.snapshot()
    assert path is not None
    first.run(7, seen.guard.step)
    seen.guard.close("error: broken off")
    second, seen = one()
    assert seen.guard.resume() == 20
    second.now = 20
    second.run(7, seen.guard.step)
    seen.guard.close()
    assert weights(second) == weights(first)
