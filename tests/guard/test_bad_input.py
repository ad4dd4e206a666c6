"""Faults that people make around `watch`: each is said clearly, and the training is untouched."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stepguard
from stepguard.collect.collector import Collector

DATA = torch.linspace(-1, 1, 24).reshape(6, 4)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def watch(model: nn.Module, optimizer: torch.optim.Optimizer, **options: object) -> stepguard.Guard:
    return stepguard.watch(model, optimizer, **{"run": None, "console": None, **options})  # type: ignore[arg-type]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    loss = (model(DATA) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    return loss


def bare(steps: int) -> list[Tensor]:
    model = network()
    optimizer = sgd(model)
    for _ in range(steps):
        step(model, optimizer)
        optimizer.step()
    return weights(model)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_optimizer_of_another_model() -> None:
    with pytest.warns(stepguard.StepguardWarning, match="none of the model's parameters"):
        guard = watch(network(), sgd(network(1)))
    guard.close()


def test_an_optimizer_that_shares_some_parameters_is_nobodys_fault() -> None:
    model, other = network(), nn.Linear(2, 2)
    watch(model, torch.optim.SGD([*model[0].parameters(), *other.parameters()], lr=0.1)).close()


def test_a_model_without_layers_is_said_and_its_loss_is_judged_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nrules: [{name: hot, when: loss > 1}, {name: std, when: any(act.std > 0)}]")

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum()

    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.warns(stepguard.StepguardWarning) as said:
        guard = watch(Bare(), optimizer, rules=file)
    assert "no layer to watch" in str(said[0].message)
    loss = Bare()(weight)
    loss.backward()
    guard.step(loss)
    guard.close()
    assert [alert.rule for alert in guard.alerts] == ["hot"]
    torch.testing.assert_close(weight.detach(), torch.tensor([0.8, 0.8]))


def test_a_model_that_is_lazy_is_watched_once_it_is_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 1))
    seen: list[tuple[str, ...]] = []
    optimizer = sgd(model)
    with watch(model, optimizer, every=1, on_error="raise") as guard:
        guard.subscribe(lambda o: seen.append(tuple(layer.name for layer in o.layers)))
        for _ in range(3):
            guard.step(step(model, optimizer))
    assert seen == [("0", "1", "2")] * 3


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(1, dtype=torch.complex64), 2.5, None])
def test_a_loss_that_is_no_number(wrong: object) -> None:
    model = network()
    optimizer = sgd(model)
    guard = watch(model, optimizer)
    step(model, optimizer)
    with pytest.warns(stepguard.StepguardWarning, match="the loss should be a tensor with one real number"):
        guard.step(wrong)  # type: ignore[arg-type]
    guard.close()
    assert same(weights(model), bare(1))


@pytest.mark.parametrize("folder", ["{tmp}/file", "{tmp}/file/below", "/proc/stepguard", "/proc", "{tmp}/\0"])
def test_a_run_folder_that_cannot_be_written(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a file")
    model = network()
    optimizer = sgd(model)
    with pytest.warns(stepguard.StepguardWarning, match=r"cannot be written .*run=None says so") as said:
        guard = watch(model, optimizer, run=folder.format(tmp=tmp_path))
        guard.step(step(model, optimizer))
        guard.close()
    assert len(said) == 1
    assert guard.run_path is None
    assert same(weights(model), bare(1))
    assert (tmp_path / "file").read_text() == "a file"


def test_a_step_after_close() -> None:
    model = network()
    optimizer = sgd(model)
    guard = watch(model, optimizer)
    guard.close()
    with pytest.warns(stepguard.StepguardWarning, match=r"step\(\) after close\(\)") as said:
        for _ in range(3):
            guard.step(step(model, optimizer))
    assert len(said) == 1
    assert guard.decisions == guard.alerts == []
    assert same(weights(model), bare(3))


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "often"])
def test_a_cadence_that_cannot_be(every: object) -> None:
    model = network()
    with pytest.raises(stepguard.StepguardError, match='every: expected "auto" or a whole number from 1'):
        watch(model, sgd(model), every=every)
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("total_steps", value) for value in (0, -5, 10.5, True, "100")],
        *[("rules", value) for value in (None, 3, [], "", ["default", 3])],
        *[("layers", value) for value in (3, [1], [])],
        *[("console", value) for value in ("rich", io.StringIO())],
        ("run", 3),
        ("scheduler", 3),
        ("scaler", 3),
        ("dry_run", "no"),
        ("on_error", "bogus"),
        ("subscribers", None),
        ("subscribers", [None]),
    ],
)
def test_an_argument_that_cannot_be_used(name: str, value: Any, tmp_path: Path) -> None:
    model = network()
    options: dict[str, Any] = {"run": tmp_path / "runs", name: value}
    with pytest.raises(stepguard.StepguardError, match=f"{name}.*: expected .*, got "):
        stepguard.watch(model, sgd(model), **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_model_and_optimizer_swapped() -> None:
    model = network()
    with pytest.raises(stepguard.StepguardError, match=r"model: expected a torch.nn.Module, got SGD"):
        stepguard.watch(sgd(model), model)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [None, "x", torch.ones(3)])
def test_a_metric_that_is_no_number(value: Any) -> None:
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer) as guard:
        seen: list[dict[str, float]] = []
        guard.subscribe(lambda observation: seen.append(dict(observation.frame.scalars)))
        with pytest.warns(stepguard.StepguardWarning, match=r"log\(a=...\): expected a number, got") as said:
            for _ in range(3):
                guard.log(a=value, b=2)
                guard.step(step(model, optimizer))
    assert len(said) == 1
    assert [(scalars.get("metric.a"), scalars["metric.b"]) for scalars in seen] == 3 * [(None, 2.0)]
    assert same(weights(model), bare(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("attempts", 0), ("attempts", 1.5), ("seed", -1), ("seed", "x"), ("budget", 0), ("budget", None)],
)
def test_a_supervision_that_cannot_be(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(stepguard.StepguardError, match=f"{name}: expected .*, got "):
        stepguard.supervise(lambda attempt: pytest.fail("it was called"), **options)


def test_layers_that_match_nothing() -> None:
    model = network()
    with pytest.raises(stepguard.StepguardError, match=r"matches no layer of the model; near misses: Linear"):
        watch(model, sgd(model), layers="Linaer")


def test_a_rule_file_with_faults(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nrules:\n  - name: a\n    when: losss > 1\n  - name: b\n    when: loss > \n")
    model = network()
    with pytest.raises(stepguard.RuleFileError) as error:
        watch(model, sgd(model), rules=file)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(error.value.problems) == 2
    assert "rules.yaml:4:" in str(error.value)
    assert "did you mean 'loss'" in str(error.value)


@pytest.mark.parametrize("name", ["defualt", "none/such.yaml"])
def test_a_rule_file_that_is_not_there(name: str) -> None:
    model = network()
    with pytest.raises(stepguard.RuleFileError, match="no such file") as error:
        watch(model, sgd(model), rules=name)
    assert ("did you mean 'default'" in str(error.value)) == (name == "defualt")


def test_a_fault_inside_is_said_once_and_the_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    model = network()
    optimizer = sgd(model)
    guard = watch(model, optimizer)
    monkeypatch.setattr(Collector, "frame", broken)
    with pytest.warns(stepguard.StepguardWarning, match="planted") as said:
        for _ in range(3):
            guard.step(step(model, optimizer))
    assert len(said) == 1
    monkeypatch.undo()
    guard.close()
    assert same(weights(model), bare(3))


def test_a_fault_inside_does_not_end_a_training_in_which_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    model = network()
    optimizer = sgd(model)
    guard = watch(model, optimizer)
    monkeypatch.setattr(Collector, "frame", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guard.step(step(model, optimizer))
    assert "planted" in capsys.readouterr().err
    monkeypatch.undo()
    guard.close()
    assert same(weights(model), bare(1))


@pytest.mark.parametrize("every", ["auto", 1, 3])
def test_a_guard_that_never_fires_changes_nothing(every: int | str, tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    with watch(model, optimizer, every=every, run=tmp_path, on_error="raise") as guard:
        for _ in range(20):
            guard.step(step(model, optimizer))
    assert guard.alerts == []
    assert same(weights(model), bare(20))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
