"""Very large weights are read in slices, one a measured step, and whole where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stepguard
from stepguard.collect.passes import HUGE, LARGE, SLICES, Passes

Watch = Callable[..., Any]
ROWS, WIDTH = 1100, 1000


def found(passes: Passes, tensors: list[Tensor], *, everything: bool = False) -> Any:
    return passes.found(passes.look(tensors, everything=everything).numpy())


def passes_of(*tensors: Tensor, in_turn: bool = True) -> Passes:
    return Passes(tensors, torch.float32, torch.device("cpu"), in_turn=in_turn)


@pytest.fixture
def huge() -> Tensor:
    tensor = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    assert tensor.numel() > HUGE
    return tensor


LAYOUTS = {"rows": lambda t: t, "columns": lambda t: t.t(), "brain floats": lambda t: t.bfloat16()}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_first_look_reads_everything(huge: Tensor, layout: Callable[[Tensor], Tensor]) -> None:
    tensor = layout(huge)
    passes = passes_of(tensor, tensor[:100])
    assert passes.sliced
    squares, absmax, nonfinite = found(passes, [tensor, tensor[:100]])
    assert squares == pytest.approx(
        [float(t.double().square().sum()) for t in (tensor, tensor[:100])], rel=1e-4
    )
    assert absmax == pytest.approx([float(t.abs().max()) for t in (tensor, tensor[:100])])
    assert nonfinite.tolist() == [0, 0]


def test_a_change_is_seen_when_its_turn_comes_and_not_later(huge: Tensor) -> None:
    passes = passes_of(huge)
    found(passes, [huge])
    for place in (0, huge.numel() // 2, huge.numel() - 1):
        huge.view(-1)[place] = 77.0 + place
        seen = [found(passes, [huge]).absmax[0] for _ in range(SLICES)]
        assert seen[-1] == pytest.approx(77.0 + place)
        assert seen == sorted(seen)


def test_everything_is_read_when_asked(huge: Tensor) -> None:
    passes = passes_of(huge)
    found(passes, [huge])
    huge.mul_(3)
    assert found(passes, [huge], everything=True).squares[0] == pytest.approx(
        float(huge.double().square().sum()), rel=1e-4
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_read_again_until_it_is(huge: Tensor, bad: float) -> None:
    passes = passes_of(huge)
    found(passes, [huge])
    spoiled = huge.clone()
    spoiled.view(-1)[[5, -5]] = bad
    assert [found(passes, [spoiled]).nonfinite[0] for _ in range(SLICES)][-1] == 2
    assert found(passes, [huge]).nonfinite[0] == 0


def test_of_a_sparse_table_a_look_reads_less_and_a_round_all(huge: Tensor) -> None:
    table = huge.repeat(3, 1)
    passes = Passes([table], torch.float32, torch.device("cpu"), in_turn=True, sparse={0})
    found(passes, [table])
    table[300] = 77.0
    table[-1] = 99.0
    seen = [found(passes, [table]).absmax[0] for _ in range(table.numel() // 2**18)]
    assert seen[: SLICES + 2] == [77.0] * (SLICES + 2)
    assert seen[-1] == 99.0


@pytest.mark.parametrize("place", [0, LARGE, -1])
def test_the_largest_of_a_large_tensor_is_seen_in_its_turn_and_all_else_at_once(place: int) -> None:
    large = torch.randn(300, 400, generator=torch.Generator().manual_seed(1))
    assert LARGE < large.numel() < HUGE
    passes = passes_of(large, large[:10])
    found(passes, [large, large[:10]])
    large.view(-1)[place] = 99.0
    seen = [found(passes, [large, large[:10]]) for _ in range(SLICES)]
    assert seen[0].squares[0] == pytest.approx(float(large.double().square().sum()), rel=1e-4)
    largest = [each.absmax[0] for each in seen]
    assert largest[-1] == pytest.approx(99.0)
    assert largest == sorted(largest)
    large.view(-1)[place] = np.nan
    at_once = found(passes, [large, large[:10]])
    assert at_once.nonfinite[0] == 1
    assert np.isnan(at_once.absmax[0])
    large.view(-1)[place] = 1.0
    healed = found(passes, [large, large[:10]])
    assert healed.nonfinite[0] == 0
    assert healed.absmax[0] == pytest.approx(float(large.abs().max()))


@pytest.mark.parametrize("signal", ["grad.absmax", "weight.absmax"])
def test_the_largest_is_looked_for_everywhere_where_a_rule_asks(watching: Watch, signal: str) -> None:
    def seen(asked: set[str]) -> tuple[float, float]:
        watched = watching(nn.Sequential(layer := nn.Linear(400, 300)), asked=asked)
        x = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
        watched.train(x)
        with torch.no_grad():
            layer.weight[-1, -1] = 50.0
        x[:, -1] = 1e4  # the last column gets the largest gradients
        frame = watched.frame(watched.backward(x))
        assert layer.weight.grad is not None
        tensor = layer.weight.grad if signal.startswith("grad") else layer.weight
        return watched.read(frame, signal, "0"), float(tensor.detach().abs().max())

    told, largest = seen({signal})
    assert told == pytest.approx(largest)
    told, largest = seen(set())
    assert told < largest


def test_tensors_with_gaps_are_read_whole(huge: Tensor) -> None:
    gaps = torch.randn(2 * ROWS, WIDTH)[::2]
    assert gaps.numel() > HUGE
    assert not passes_of(gaps).sliced
    assert not passes_of(huge, in_turn=False).sliced


class Table(nn.Module):
    """A table of which a batch uses few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(ROWS, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x))


def test_a_bad_weight_that_no_batch_uses_is_found_within_a_round(watching: Watch) -> None:
    watched = watching(model := Table())
    x = torch.arange(8)
    frames = [watched.train(x) for _ in range(2)]
    assert watched.read(frames[-1], "weight.nonfinite", "rows") == 0
    with torch.no_grad():
        model.rows.weight[-1, -1] = np.nan
    seen = [watched.read(watched.train(x), "weight.nonfinite", "rows") for _ in range(SLICES)]
    assert 1 in seen
    assert seen == sorted(seen)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_bad_step_reads_everything_in_its_own_frame(watching: Watch, sampled: bool) -> None:
    watched = watching(model := Table())
    watched.train(torch.arange(8))
    with torch.no_grad():
        model.rows.weight[1, 1] = model.rows.weight[-1, -1] = np.inf
    loss = watched.backward(torch.arange(8))
    frame = watched.frame(loss, sampled=sampled)
    assert watched.read(frame, "weight.nonfinite", "rows") == 2


def test_after_a_step_that_was_not_taken_nothing_is_told_of_what_was_before(tmp_path: Any) -> None:
    """The weights are read whole, though it is one slice's turn."""
    torch.manual_seed(0)
    model = Table()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sizes: list[float] = []
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules:\n  - {name: jump, when: loss > 1e6, action: skip}\n")
    guard = stepguard.watch(model, optimizer, rules=rules, run=None, console=None, every=1, on_error="raise")
    guard.subscribe(lambda seen: sizes.append(float(seen.frame.vectors["weight.rms"].values[0])))
    with guard:
        for step in range(4):
            if step == 2:
                with torch.no_grad():
                    model.rows.weight.mul_(1e3)
            if step == 3:
                with torch.no_grad():
                    model.rows.weight.div_(1e3)
            loss = model(torch.arange(8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            guard.step(loss + (1e7 if step == 2 else 0))
    assert sizes[3] == pytest.approx(sizes[1], rel=1e-3)
