"""The public names: listed, documented, typed, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing

import pytest

import stepguard

ERRORS = (
    stepguard.RuleFileError,
    stepguard.RunFileError,
    stepguard.TrainingStopped,
    stepguard.TrainingHalted,
    stepguard.RestartRequested,
)


def test_the_names_are_listed_and_nothing_else_is_offered() -> None:
    assert stepguard.__all__ == [
        "Attempt",
        "Guard",
        "RestartRequested",
        "RuleFileError",
        "RunFileError",
        "StepguardError",
        "StepguardWarning",
        "TrainingHalted",
        "TrainingStopped",
        "supervise",
        "watch",
    ]
    assert dir(stepguard) == sorted(stepguard.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'wacth'"):
        stepguard.wacth  # noqa: B018  # pyright: ignore


@pytest.mark.parametrize("name", stepguard.__all__)
def test_each_name_is_documented(name: str) -> None:
    thing = getattr(stepguard, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        methods = [value for key, value in vars(thing).items() if not key.startswith("_") and callable(value)]
        assert all(inspect.getdoc(method) for method in methods)


@pytest.mark.parametrize("function", [stepguard.watch, stepguard.supervise], ids=lambda f: f.__name__)
def test_each_argument_and_result_has_a_type(function: typing.Callable[..., object]) -> None:
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_watch_takes_what_the_design_names() -> None:
    names = list(inspect.signature(stepguard.watch).parameters)
    assert names == [
        *("model", "optimizer", "rules", "total_steps", "run", "console", "every", "layers"),
        *("scheduler", "scaler", "subscribers", "dry_run", "on_error"),
    ]


def test_the_tree_of_errors() -> None:
    assert all(issubclass(error, stepguard.StepguardError) for error in ERRORS)
    assert issubclass(stepguard.TrainingHalted, stepguard.TrainingStopped)
    assert issubclass(stepguard.RestartRequested, stepguard.TrainingStopped)
    assert not issubclass(stepguard.StepguardWarning, stepguard.StepguardError)
    stopped = stepguard.RestartRequested("why", step=3, rule="r", remedy={"lr": 0.5})
    assert (stopped.diagnosis, stopped.step, stopped.rule, stopped.remedy) == ("why", 3, "r", {"lr": 0.5})


@pytest.mark.parametrize(
    "module", ["stepguard", "stepguard.cli", "stepguard.cli.check", "stepguard.cli.replay"]
)
def test_torch_stays_out_where_it_is_not_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
