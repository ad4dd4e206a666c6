from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console, RenderableType

from stepguard.errors import Place
from stepguard.recover.decision import Decision
from stepguard.rules.alert import Change, Evidence
from stepguard.rules.expression import compile_condition
from stepguard.rules.rule import Rule
from stepguard.series.blocks import Block
from stepguard.series.columns import decode, encode
from stepguard.signals import Frame, Layer

Render = Callable[..., str]


@pytest.fixture
def render() -> Render:
    """What a renderable looks like at a fixed width, without colours and trailing blanks."""

    def text(renderable: RenderableType, width: int = 90, **console: Any) -> str:
        file = io.StringIO()
        Console(file=file, width=width, **console).print(renderable)
        return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())

    return text


@pytest.fixture
def blocks() -> Callable[[Sequence[Frame]], list[Block]]:
    """Frames by columns, as a run file gives them back."""

    def encoded(frames: Sequence[Frame]) -> list[Block]:
        names: dict[str, int] = {}
        data, hist = encode(frames, lambda name: names.setdefault(name, len(names)))
        return [decode(data, {number: name for name, number in names.items()}, None, hist)]

    return encoded


@pytest.fixture
def layers() -> list[Layer]:
    return [
        *(Layer(f"conv{i}", "Conv2d") for i in range(1, 6)),
        Layer("norm", "BatchNorm2d"),
        Layer("head", "Linear"),
    ]


@pytest.fixture
def crash_rule() -> Rule:
    return Rule(
        "rising-crash",
        compile_condition("share(crash(act.std, rise=3, fall=3, within=60)) >= 0.5"),
        Place("default.yaml", 12, 5),
        severity="critical",
        advice=("halve the learning rate", "normalise the input", "Kaiming or LSUV initialisation"),
    )


@pytest.fixture
def crash() -> Change:
    std = (1.02, 1.1, 1.4, 1.9, 2.7, 3.9, 6.2, 9.9, 12.5, 8.1, 2.2, 0.31, 0.022, 0.0031)
    evidence = Evidence(
        signal="act.std",
        value=0.0031,
        steps=tuple(range(28, 42)),
        values=std,
        measures={"rise": 12.3, "fall": 4032.0, "peak": 12.5},
        layers=("conv3", "conv4", "conv5", "head"),
        total=7,
    )
    return Change(
        41, "rising-crash", None, "firing", "critical", "std rose 12.3x and fell to 0.0031", evidence
    )


@pytest.fixture
def restart() -> Decision:
    return Decision(41, "restart", {"lr": 0.5, "init": "lsuv"}, "rising-crash", "conv3", 0, 2, 1, "")
