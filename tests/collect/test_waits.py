"""Nothing waits for the device: no scalar is read in a hook, and a sampled step makes one transfer.

A dispatch mode counts what would wait. Tensors on the "meta" device have no numbers: whatever reads one
raises, so a whole step on them shows that all is measured where the tensors lie. Only the transfer to the
host is answered, with made-up numbers. (A FakeTensorMode for CUDA cannot record gradients, index or copy
unless torch is built for CUDA.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Watch = Callable[..., Any]
ATEN = torch.ops.aten

READS = (ATEN._local_scalar_dense, ATEN.equal, ATEN.is_nonzero)
SIZED_BY_NUMBERS = (ATEN.nonzero, ATEN.masked_select, ATEN._unique2, ATEN.unique_dim, ATEN.bincount)


class Counted(TorchDispatchMode):
    """Counts what makes the host wait, and answers transfers from "meta" with numbers."""

    def __init__(self, number: float = 0.5) -> None:
        super().__init__()
        self.number = number
        self.reads: list[str] = []
        self.transfers: list[int] = []
        self.waited = 0
        """Transfers that the host waits for at once."""
        self.uploads: list[int] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in READS or (packet in SIZED_BY_NUMBERS and args[0].device.type != "cpu"):
            self.reads.append(str(func))
        if packet in (ATEN._to_copy, ATEN.copy_):
            source, target = self._devices(packet, args, kwargs)
            if (source, target) == ("meta", "cpu"):
                self.transfers.append(args[packet is ATEN.copy_].numel())
                self.waited += not kwargs.get("non_blocking")
                return self._answer(packet, args, kwargs)
            if source != target:
                self.uploads.append(args[0].numel())
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not func.is_view:
            self.largest = max(self.largest, result.numel())
        return result

    def _devices(self, packet: Any, args: Any, kwargs: Any) -> tuple[str, str]:
        if packet is ATEN.copy_:
            return args[1].device.type, args[0].device.type
        return args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type

    def _answer(self, packet: Any, args: Any, kwargs: Any) -> Tensor:
        if packet is ATEN.copy_:
            return args[0].fill_(self.number)
        return torch.full(args[0].shape, self.number, dtype=kwargs.get("dtype") or args[0].dtype)


class Net(nn.Module):
    """Small and large layers, modules and functions, a bounded activation and a loop."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, **options)
        self.norm = nn.BatchNorm2d(8, **options)
        self.tanh = nn.Tanh()
        self.wide = nn.Linear(8 * 36, 400, **options)
        self.loop = nn.Linear(400, 400, **options)
        self.head = nn.Linear(400, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wide(self.tanh(self.norm(self.conv(x))).flatten(1))
        for _ in range(3):
            hidden = self.loop(F.relu(hidden))
        return self.head(hidden)


def images(**options: Any) -> Tensor:
    return torch.ones(16, 3, 8, 8, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_on_the_host_no_scalar_is_read(watching: Watch, dtype: torch.dtype) -> None:
    watched = watching(Net(dtype=dtype))
    for sampled in (True, True, False, True):
        with Counted() as counted:
            loss = watched.backward(images(dtype=dtype))
            watched.frame(loss, sampled=sampled)
        assert counted.reads == []
    assert watched.faults == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_on_the_host_no_scalar_is_read_of_non_finite_numbers(watching: Watch, bad: float) -> None:
    watched = watching(Net())
    for sampled in (True, False):
        with Counted() as counted:
            loss = watched.backward(images() * bad)
            watched.frame(loss, sampled=sampled)
        assert counted.reads == []
    assert watched.faults == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_on_a_device_a_sampled_step_makes_one_transfer_and_no_hook_any(
    watching: Watch, dtype: torch.dtype
) -> None:
    options = {"device": "meta", "dtype": dtype}
    watched = watching(Net(**options))
    for step in range(3):
        with Counted() as hooks:
            loss = watched.backward(images(**options))
        assert hooks.reads == hooks.transfers == []
        with Counted() as boundary:
            frame = watched.frame(loss)
        assert boundary.reads == []
        assert len(boundary.transfers) == 1
        if step > 0:
            assert hooks.uploads == boundary.uploads == []
        assert {"act.std", "act.dead", "grad.norm", "weight.absmax"} <= set(frame.vectors)
        assert frame.scalars["loss"] == 0.5
        assert all(watched.read(frame, "act.absmax", name) == 0.5 for name in watched.names())
    assert watched.faults == []


def test_layers_in_several_number_formats_share_the_transfer(watching: Watch) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 90, device="meta")
            self.b = nn.Linear(90, 9, device="meta", dtype=torch.float64)
            self.c = nn.Linear(9, 3, device="meta", dtype=torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).double()).bfloat16())

    watched = watching(Mixed())
    for sampled in (True, False):
        loss = watched.backward(torch.ones(70, 4, device="meta"))
        with Counted() as counted:
            frame = watched.frame(loss, sampled=sampled)
        assert len(counted.transfers) == 1
        assert counted.reads == []
        assert [watched.read(frame, "grad.nonfinite", name) is None for name in "abc"] == [False] * 3


def test_on_a_device_an_unsampled_step_transfers_little(watching: Watch) -> None:
    watched = watching(Net(device="meta"))
    watched.collector.active = False
    for _ in range(2):
        with Counted() as counted:
            loss = watched.backward(images(device="meta"))
            frame = watched.frame(loss, sampled=False)
        assert counted.reads == []
        assert len(counted.transfers) == 1
        assert counted.transfers[0] <= 8
        assert frame.scalars["loss"] == 0.5
        assert watched.read(frame, "grad.nonfinite", "conv") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampled", [True, False], ids=["measured", "not measured"])
def test_what_is_begun_on_a_device_makes_one_transfer_and_waits_for_nothing(
    watching: Watch, dtype: torch.dtype, sampled: bool
) -> None:
    options = {"device": "meta", "dtype": dtype}
    watched = watching(Net(**options))
    for step in range(3):
        watched.collector.active = sampled
        with Counted(0.0) as counted:
            loss = watched.backward(images(**options))
            if sampled:
                watched.collector.remember(step)
            coming = watched.collector.begin(step, loss, sampled=sampled)
            watched.backward(images(**options))
        assert counted.reads == []
        assert (len(counted.transfers), counted.waited) == (1, 0)
        assert coming.bad.device.type == "meta"
        with Counted() as counted:
            frame, bad = coming.arrive()
        assert counted.reads == counted.transfers == []
        assert not bad
        assert ("act.std" in frame.vectors) == sampled
        assert watched.read(frame, "grad.nonfinite", "conv") == 0
        assert frame.scalars["loss"] == 0.0
    assert watched.faults == []


def test_batches_that_change_their_size_upload_nothing_once_all_sizes_were_seen(watching: Watch) -> None:
    watched = watching(Net(device="meta"))
    for step in range(6):
        with Counted() as counted:
            watched.frame(watched.backward(torch.ones(16 + step % 2, 3, 8, 8, device="meta")))
        assert step < 2 or counted.uploads == []
    assert watched.faults == []


def test_on_a_device_a_bad_gradient_costs_a_second_transfer(watching: Watch) -> None:
    watched = watching(Net(device="meta"))
    loss = watched.backward(images(device="meta"))
    with Counted(np.nan) as counted:
        frame = watched.frame(loss, sampled=False)
    assert len(counted.transfers) == 2
    assert counted.reads == []
    assert np.isnan(watched.read(frame, "grad.norm", "conv"))


def test_a_loss_alone_is_one_transfer(watching: Watch) -> None:
    watched = watching(Net(device="meta"))
    loss = watched.backward(images(device="meta"))
    with Counted() as counted:
        frame = watched.collector.frame_of_loss(0, loss)
    assert frame.scalars == {"loss": 0.5}
    assert counted.transfers == [1]


def test_the_host_and_a_device_together(watching: Watch) -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here, self.there = nn.Linear(4, 4), nn.Linear(4, 4, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            self.here(x).sum().backward()
            return self.there(x.to("meta"))

    watched = watching(Split())
    for _ in range(2):
        loss = watched.backward(torch.ones(3, 4))
        watched.model.here(torch.ones(3, 4)).sum().backward()
        with Counted() as counted:
            frame = watched.frame(loss)
        assert len(counted.transfers) == 1
        assert watched.read(frame, "act.absmax", "there") == 0.5
        expected = watched.model.here(torch.ones(3, 4)).abs().max().item()
        assert watched.read(frame, "act.absmax", "here") == pytest.approx(expected)
        assert watched.read(frame, "weight.norm", "here") == pytest.approx(
            torch.cat([p.flatten() for p in watched.model.here.parameters()]).norm().item()
        )
        assert {signal for signal in frame.vectors if watched.read(frame, signal, "there") is not None} >= {
            "grad.norm",
            "weight.norm",
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["plain", "channels_last", "transposed"])
def test_a_hook_makes_no_copy_of_a_large_output(
    watching: Watch, emit: Callable[..., nn.Module], dtype: torch.dtype, layout: str
) -> None:
    output = torch.randn(64, 32, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    if layout == "channels_last":
        output = output.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        output = output.transpose(0, 1)
    watched = watching(emit(output, channels=True))
    for _ in range(2):
        with Counted() as counted:
            watched.model()
        assert 0 < counted.largest <= output.numel() / 8
        watched.frame()


def test_the_step_boundary_makes_no_copy_of_a_large_parameter(
    watching: Watch, emit: Callable[..., nn.Module]
) -> None:
    layer = emit(torch.ones(2, 2))
    layer.weight = nn.Parameter(torch.randn(600, 500))
    layer.weight.grad = torch.randn(600, 500)
    watched = watching(layer)
    for sampled in (True, True, False):
        with Counted() as counted:
            watched.frame(sampled=sampled)
        assert 0 < counted.largest <= 600 * 500 / 8
