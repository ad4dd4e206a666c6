"""Outputs of every kind, modules that are called several times, late or never, and passes left out."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

Watch = Callable[..., Any]
Make = Callable[..., nn.Module]
Defined = Callable[..., dict[str, Any]]


@dataclass
class Output:
    loss: Tensor | None
    hidden: Tensor


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("hidden", "note")
    note: str
    hidden: Tensor


class Plain:
    """Says nothing of what is in it."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


Pair = namedtuple("Pair", ["tokens", "hidden"])
HIDDEN = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(6)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param((HIDDEN, torch.zeros(3)), id="tuple"),
        pytest.param([HIDDEN], id="list"),
        pytest.param({"a": HIDDEN, "b": torch.zeros(3)}, id="dict"),
        pytest.param(OrderedDict(tokens=TOKENS, hidden=HIDDEN), id="ordered dict"),
        pytest.param(Output(None, HIDDEN), id="dataclass"),
        pytest.param(Slotted("", HIDDEN), id="dataclass with slots"),
        pytest.param(Pair(TOKENS, HIDDEN), id="namedtuple"),
        pytest.param(pack_sequence([HIDDEN]), id="packed sequence"),
        pytest.param((None, "text", 3, TOKENS, [{"deep": (torch.zeros(0), HIDDEN)}]), id="nested"),
        pytest.param((torch.zeros(0, 4), HIDDEN), id="after an empty one"),
        pytest.param((torch.eye(3).to_sparse(), HIDDEN), id="after a sparse one"),
        pytest.param((HIDDEN > 0, HIDDEN), id="after a mask"),
    ],
)
def test_the_first_floating_tensor_of_an_output_counts(
    watching: Watch, emit: Make, defined: Defined, output: Any
) -> None:
    watched = watching(emit(output))
    frame = watched.see()
    assert watched.faults == []
    assert watched.outputs(frame) == defined(HIDDEN)


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "output",
    [
        *[None, "text", 3.5, (), {}, TOKENS, HIDDEN > 0, torch.zeros(0), torch.zeros(3, 0, 2)],
        *[HIDDEN.to_sparse(), Plain(HIDDEN), (None, [TOKENS])],
    ],
    ids=lambda output: type(output).__name__,
)
def test_an_output_without_one_is_no_fault(watching: Watch, emit: Make, output: Any) -> None:
    watched = watching(nn.Sequential(emit(output), emit(HIDDEN)))
    frame = watched.see(torch.zeros(1))
    assert watched.faults == []
    assert watched.names() == ["0", "1"]
    assert watched.all(frame, "act", "0") == {}
    assert watched.read(frame, "act.std", "1") is not None
    assert frame.hist is not None
    assert not frame.hist[0].any()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_left_out(watching: Watch, emit: Make, layout: torch.layout) -> None:
    watched = watching(emit(torch.nested.nested_tensor([HIDDEN, HIDDEN[:2]], layout=layout)))
    assert watched.all(watched.see(), "act") == {}
    assert watched.faults == []


@pytest.mark.parametrize(
    "make", [endless, lambda: torch.ones(2, 2).to(torch.float8_e4m3fn)], ids=["endless", "8 bits"]
)
def test_an_output_that_no_statistic_can_take_is_a_fault_and_not_an_error(
    watching: Watch, emit: Make, defined: Defined, make: Callable[[], Any]
) -> None:
    bad, good = emit(make()), emit(HIDDEN)
    watched = watching(nn.Sequential(bad, good))
    for _ in range(3):
        frame = watched.see(torch.zeros(1))
        assert watched.outputs(frame, "1") == defined(HIDDEN)
        if watched.faults:
            assert watched.all(frame, "act", "0") == {}
    bad.output = HIDDEN
    assert watched.outputs(watched.see(torch.zeros(1)), "0") == defined(HIDDEN)


def test_meta_tensors_do_no_harm(watching: Watch, emit: Make) -> None:
    watched = watching(emit(torch.ones(4, 4, device="meta")))
    watched.model()
    assert all(isinstance(fault, Exception) for fault in watched.faults)


class Loop(nn.Module):
    """A cell that is called once for each part of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 6)

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        self.seen = [self.cell(part) for part in parts]
        return self.seen


def parts(*batches: int) -> list[Tensor]:
    make = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 4, generator=make) for batch in batches]


def kill(layer: nn.Linear, units: list[int]) -> None:
    with torch.no_grad():
        layer.weight[units], layer.bias[units] = 0, 0


@pytest.mark.parametrize(
    "batches", [(5, 5, 5), (5, 9, 3), (2, 900, 2), (900, 2, 1), (3, 40, 700), (1, 2)], ids=str
)
def test_of_several_calls_the_extremes_of_all_and_the_moments_of_the_last(
    watching: Watch, defined: Defined, batches: tuple[int, ...]
) -> None:
    watched = watching(model := Loop())
    for _ in range(2):
        given = parts(*batches)
        given[0] *= 100
        frame = watched.see(given)
        found = watched.outputs(frame)
        last = defined(model.seen[-1])
        assert found["act.absmax"] == max(output.abs().max().item() for output in model.seen)
        if model.seen[-1].numel() <= 4096:
            assert {k: found[k] for k in ("act.mean", "act.std", "act.rms")} == {
                k: last[k] for k in ("act.mean", "act.std", "act.rms")
            }


@pytest.mark.parametrize("batches", [(5, 5, 5), (5, 9, 3), (2, 900, 2), (900, 2, 1), (3, 40, 700)], ids=str)
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_non_finite_number_in_any_call_is_counted(
    watching: Watch, batches: tuple[int, ...], call: int
) -> None:
    watched = watching(Loop())
    watched.see(parts(*batches))
    given = parts(*batches)
    given[call][-1, 0] = np.nan
    frame = watched.see(given)
    assert watched.read(frame, "act.nonfinite") == 6
    assert watched.read(watched.see(parts(*batches)), "act.nonfinite") == 0


@pytest.mark.parametrize("batches", [(5, 5, 5), (5, 9, 3), (60, 5, 5)], ids=str)
def test_a_unit_is_dead_that_is_silent_in_all_calls(watching: Watch, batches: tuple[int, ...]) -> None:
    class ReluLoop(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, parts: list[Tensor]) -> list[Tensor]:
            return [self.relu(self.cell(part)) for part in parts]

    model = ReluLoop()
    with torch.no_grad():
        model.cell.weight.fill_(1)
        model.cell.bias.fill_(0)
        model.cell.bias[0] = -1e9
    watched = watching(model)
    given = [part.abs() for part in parts(*batches)]
    given[-1] *= -1
    assert watched.read(watched.see(given), "act.dead", "relu") == pytest.approx(1 / 6)
    given = [-part.abs() for part in parts(*batches)]
    assert watched.read(watched.see(given), "act.dead", "relu") == 1


def test_a_module_that_is_never_called(watching: Watch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.used = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    watched = watching(Model())
    for _ in range(2):
        frame = watched.train(torch.randn(3, 4))
        assert watched.names() == ["unused", "used"]
        assert watched.all(frame, "act", "unused") == watched.all(frame, "grad", "unused") == {}
        assert len(watched.all(frame, "weight", "unused")) == 4
        assert frame.hist is not None
        assert not frame.hist[0].any()


def test_a_module_that_is_first_called_at_a_later_step(watching: Watch, defined: Defined) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.first, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()
            self.warm = False

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            self.seen = self.act(self.late(hidden)) if self.warm else hidden
            return self.seen

    watched = watching(Model())
    watched.train(torch.randn(3, 4))
    layers = watched.layers
    watched.model.warm = True
    frame = watched.train(torch.randn(3, 4))
    assert watched.layers == layers
    assert watched.names() == ["late", "first", "act"]
    assert watched.outputs(frame, "act") == defined(watched.model.seen)
    watched.model.warm = False
    assert watched.all(watched.train(torch.randn(3, 4)), "act", "act") == {}


def test_a_frame_before_any_forward_pass(watching: Watch) -> None:
    watched = watching(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    frame = watched.frame(torch.tensor(1.5))
    assert watched.names() == ["0", "1"]
    assert frame.scalars["loss"] == 1.5
    assert "act.std" not in frame.vectors
    frame = watched.train(torch.randn(3, 4))
    assert watched.read(frame, "act.std", "1") is not None


def test_depth_order_is_the_order_of_the_calls(watching: Watch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)) + self.a(x))

    watched = watching(Model())
    watched.see(torch.randn(3, 4))
    assert watched.names() == ["a", "b", "c"]


def test_a_module_under_two_names_is_one_layer(watching: Watch) -> None:
    shared = nn.Linear(4, 4)
    watched = watching(nn.Sequential(OrderedDict(a=shared, relu=nn.ReLU(), b=shared)))
    watched.train(torch.randn(3, 4))
    assert watched.names() == ["a", "relu"]


def dropout_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def test_evaluation_is_left_out(watching: Watch, defined: Defined) -> None:
    model = dropout_net()
    watched = watching(model)
    model.eval()
    assert "act.std" not in watched.see(torch.randn(3, 4)).vectors
    model.train()
    x = torch.randn(6, 4)
    hidden = model[0](x)
    watched.collector.frame_of_loss(99, None)
    model(x)
    model.eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            model(x * 1000)
    model.train()
    with torch.no_grad():
        model(x * 1000)
    with torch.inference_mode():
        model(x * 1000)
    frame = watched.frame()
    assert watched.outputs(frame, "0") == defined(hidden)
    assert frame.scalars["input.absmax"] == x.abs().max()


def test_a_frozen_part_in_evaluation_mode_is_left_out(watching: Watch) -> None:
    model = dropout_net()
    model[1].eval()
    watched = watching(model)
    frame = watched.train(torch.randn(6, 4))
    assert watched.all(frame, "act", "1") == {}
    assert watched.read(frame, "act.std", "0") is not None


def test_inactive_passes_are_not_measured(watching: Watch) -> None:
    watched = watching(nn.Linear(4, 4))
    assert watched.collector.active
    watched.see(torch.ones(3, 4))
    watched.collector.active = False
    frame = watched.see(torch.ones(3, 4))
    assert not [name for name in frame.vectors if name.startswith("act.")]
    assert frame.hist is None
    assert "input.std" not in frame.scalars
    watched.collector.active = True
    assert watched.read(watched.see(torch.ones(3, 4)), "act.std") is not None


def test_a_pass_belongs_to_one_frame_only(watching: Watch) -> None:
    watched = watching(nn.Linear(4, 4))
    watched.see(torch.ones(3, 4) * 1000)
    assert not [name for name in watched.frame().vectors if name.startswith("act.")]
    frame = watched.see(torch.ones(3, 4))
    assert watched.read(frame, "act.absmax") < 10
    assert frame.scalars["input.absmax"] == 1


def test_a_frame_of_the_loss_forgets_the_passes_before(watching: Watch) -> None:
    watched = watching(nn.Linear(4, 4))
    watched.backward(torch.full((3, 4), np.nan))
    frame = watched.collector.frame_of_loss(3, torch.tensor(2.5))
    assert frame.step == 3
    assert frame.scalars == {"loss": 2.5}
    assert frame.vectors == {}
    assert frame.hist is None
    assert watched.read(watched.see(torch.ones(3, 4)), "act.nonfinite") == 0
    assert watched.collector.frame_of_loss(4, None).scalars == {}


def test_accumulated_passes_count_together(watching: Watch, defined: Defined) -> None:
    watched = watching(model := nn.Linear(4, 4))
    batches = [torch.randn(5, 4) for _ in range(3)]
    batches[0][0, 0], batches[1][2, 2] = 1000, np.inf
    for batch in batches:
        model(batch).square().mean().backward()
    frame = watched.frame()
    last = defined(model(batches[-1]))
    assert watched.read(frame, "act.nonfinite") == 4
    assert watched.read(frame, "act.std") == last["act.std"]
    assert frame.scalars["input.absmax"] == np.inf
    assert frame.scalars["input.nonfinite"] == 1


class Checkpointed(nn.Module):
    """A network whose middle is computed again in the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.reentrant = nn.Linear(4, 8), nn.Linear(8, 2), reentrant
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.last(self.middle(self.first(x)))
        return self.last(checkpoint(self.middle, self.first(x), use_reentrant=self.reentrant))


REENTRANT = pytest.param(
    True,
    marks=pytest.mark.xfail(
        strict=True,
        reason="a reentrant checkpoint shows its layers in the backward pass only: last in depth order, and"
        " of several accumulated passes the first",
    ),
)


@pytest.mark.parametrize("reentrant", [False, REENTRANT])
def test_checkpointing_measures_the_same_as_without(watching: Watch, reentrant: bool) -> None:
    x = torch.randn(6, 4)
    x[0, 0] = np.inf
    plain, saved = (watching(Checkpointed(kind)) for kind in (None, reentrant))
    for _ in range(2):
        expected, found = plain.train(x), saved.train(x)
        assert saved.faults == []
        assert saved.layers == plain.layers
        for name in plain.names():
            for kind in ("act", "grad"):
                assert saved.all(found, kind, name) == pytest.approx(
                    plain.all(expected, kind, name), nan_ok=True
                ), name


@pytest.mark.parametrize("reentrant", [False, REENTRANT])
def test_checkpointing_counts_each_output_once(watching: Watch, reentrant: bool) -> None:
    watched = watching(model := Checkpointed(reentrant))
    x = torch.randn(6, 4)
    for batches in (1, 3):
        with torch.no_grad():
            model.middle[0].bias[0] = np.nan
        for _ in range(batches):
            model(x).sum().backward()
        assert watched.read(watched.frame(), "act.nonfinite", "middle.0") == 6 * batches
