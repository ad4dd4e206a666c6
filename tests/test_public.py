"""The public names: listed, documented, typed, and cheap to import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

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


def functions() -> dict[str, typing.Callable[..., object]]:
    """Every public function, method and property, by its name."""
    found: dict[str, typing.Callable[..., object]] = {}
    for name in stepguard.__all__:
        thing = getattr(stepguard, name)
        if not inspect.isclass(thing):
            found[name] = thing
            continue
        for own, value in vars(thing).items():
            value = value.fget if isinstance(value, property) else value  # noqa: PLW2901
            if not own.startswith("_") and inspect.isfunction(value):
                found[f"{name}.{own}"] = value
    return found


def test_functions_methods_and_properties_are_found() -> None:
    assert {"watch", "supervise", "Guard.step", "Guard.alerts", "Attempt.next"} <= set(functions())


@pytest.mark.parametrize("name", [*stepguard.__all__, *functions()])
def test_each_name_is_documented(name: str) -> None:
    thing = functions().get(name) or getattr(stepguard, name)
    doc = inspect.getdoc(thing) or ""
    assert doc.split("\n\n")[0].endswith((".", ":")), "it begins with a sentence"
    assert not doc.startswith(f"{name}("), "the doc that dataclasses make is none"


@pytest.mark.parametrize("name", functions())
def test_each_argument_and_result_has_a_type(name: str) -> None:
    signature = inspect.signature(functions()[name])
    assert signature.return_annotation is not inspect.Signature.empty
    parameters = [parameter for own, parameter in signature.parameters.items() if own != "self"]
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


def test_each_argument_of_watch_is_explained() -> None:
    doc = inspect.getdoc(stepguard.watch) or ""
    for name in inspect.signature(stepguard.watch).parameters:
        assert f"\n    {name}: " in doc, name


def test_what_type_checkers_see_is_what_is_there() -> None:
    source = Path(stepguard.__file__).read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in nodes for alias in node.names}
    for name in stepguard.__all__:
        assert getattr(import_module(str(homes[name])), name) is getattr(stepguard, name)


@pytest.mark.parametrize("path", sorted(Path(stepguard.__file__).parent.rglob("*.py")), ids=lambda p: p.name)
def test_every_public_function_of_every_module_says_what_it_returns(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert node.returns is not None, f"{path.name}:{node.lineno}: {node.name}"


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
