"""Hooks on the modules of a model. They only measure: never raise, decide, or wait for the device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stepguard.collect.activations import FUNCTIONS, PASSED_ON, bounds_of, function_of
from stepguard.collect.depth import Depth
from stepguard.collect.hooks import Hook, InputHook
from stepguard.collect.layers import Watched
from stepguard.collect.samples import WIDTHS, Samples
from stepguard.collect.trace import Call, call_of, repeat
from stepguard.signals import Layer

INPUT = ""
"""Key of the first floating tensor that the model is given; no layer has this name."""

_Group = tuple[torch.device, torch.dtype, int]

_HOPS = 8
"""Steps back from an input in the search for the function that made it."""


class _Fed(NamedTuple):
    layer: Layer
    bounds: tuple[float, float] | None


class _Seat(NamedTuple):
    """Where a layer's outputs go, and what kind of output was the last."""

    kind: tuple[torch.device, torch.dtype, int]
    group: _Group
    samples: Samples
    row: int


class Taps:
    """The hooks of one model, and the samples they fill.

    `active` says whether the forward passes to come are measured. Layers come to light in the first of them.
    """

    def __init__(
        self,
        model: nn.Module,
        watched: Sequence[Watched],
        chosen: Callable[[Layer], bool],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self.active = True
        self.last_call: Call | None = None
        """The last call of the model that was not measured."""
        self._tracing = False
        self._model = model
        self._chosen, self._on_fault = chosen, on_fault
        self._groups: dict[_Group, Samples] = {}
        self._seats: dict[str, _Seat] = {}
        self._keys: dict[tuple[_Group, int], str] = {}
        self._depth = Depth(watched)
        self._fed: dict[str, _Fed] = {}
        """Layers fed by a plain function, and the pseudo-layer that shows its output."""
        self._nodes: set[Any] = set()
        self._discovering = True
        self._channels_first = False
        self._last: tuple[weakref.ref[Tensor], int, _Seat] | None = None
        """The tensor measured last, its version then, and where its sample is."""
        self._before_calls: dict[str, RemovableHandle] = {}
        self._handles = [model.register_forward_pre_hook(InputHook(self, self._on_input), with_kwargs=True)]
        for item in watched:
            if not item.activation:
                name = item.layer.name
                self._before_calls[name] = item.module.register_forward_pre_hook(
                    Hook(self, self._before(item))
                )
            self._handles.append(item.module.register_forward_hook(Hook(self, self._after(item))))

    def close(self) -> None:
        """Take all hooks off the model."""
        handles: list[RemovableHandle] = self._handles
        for handle in [*handles, *self._before_calls.values()]:
            handle.remove()
        self._handles, self._before_calls = [], {}

    def settle(self) -> list[Layer]:
        """End the search for layers; return all, in the order of their depth."""
        self._discovering = False
        self._nodes.clear()
        for name in self._before_calls.keys() - self._fed.keys():
            self._before_calls.pop(name).remove()
        return self._depth.layers()

    def forget(self) -> None:
        """Forget the forward passes since the last frame."""
        self.last_call = None
        for samples in self._groups.values():
            samples.forget()

    def groups(self) -> Iterator[tuple[Samples, Callable[[int], str]]]:
        """Each buffer of samples, and what tells the name of the layer in a row of it."""
        for group, samples in self._groups.items():
            yield samples, lambda row, group=group: self._keys[group, row]

    def _listening(self, module: nn.Module) -> bool:
        """Whether this call counts: training, with gradients, and not recorded by `torch.jit.trace`.

        Inside of `torch.func.grad`, `vmap` and the like, tensors stand for others and hold no numbers.
        """
        if _transformed():
            return False
        if self._tracing:
            return True
        traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        return module.training and torch.is_grad_enabled() and not traced

    def trace(self) -> None:
        """Measure the last call again, of a step that was not measured; nothing if there was none.

        Where the model fails at it, nothing is measured.
        """
        call, self.last_call = self.last_call, None
        if call is None:
            return
        active, self.active, self._tracing = self.active, True, True
        try:
            repeat(self._model, call)
        except Exception as fault:
            self.forget()
            self._on_fault(fault)
        finally:
            self.active, self._tracing = active, False

    def _on_input(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self._listening(model):
            return
        if not self.active:
            self.last_call = call_of(args, kwargs)
            return
        try:
            given = first_floating((args, dict(kwargs)))
            if given is not None:
                self._measure(INPUT, given, None, None)
        except Exception as fault:
            self._on_fault(fault)

    def _before(self, item: Watched) -> Callable[..., None]:
        name = item.layer.name

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._listening(module):
                return
            try:
                given = first_floating(args)
                if given is not None and self._discovering:
                    self._discover(name, given)
                if given is not None and name in self._fed:
                    fed = self._fed[name]
                    self._measure(fed.layer.name, given, 1 if item.channels_first else -1, fed.bounds)
            except Exception as fault:
                self._on_fault(fault)

        return hook

    def _discover(self, name: str, given: Tensor) -> None:
        """See whether a plain function made this input: autograd remembers which."""
        node = given.grad_fn
        for _ in range(_HOPS):
            if node is None or node in self._nodes:
                return
            kind = node.name().rstrip("0123456789").removesuffix("Backward")
            if kind in FUNCTIONS:
                type_, bounds = function_of(kind, node)
                layer = Layer(f"{name}.input", type_)
                self._nodes.add(node)
                if self._chosen(layer):
                    self._fed[name] = _Fed(layer, bounds)
                    self._depth.called(layer)
                return
            before = [each for each, _ in node.next_functions if each is not None]
            # A product of two that both depend on parameters is a gate, not a dropout.
            if not PASSED_ON.search(kind) or len(before) != 1:
                return
            node = before[0]

    def _after(self, item: Watched) -> Callable[..., None]:
        layer, bounds = item.layer, bounds_of(item.module)
        relu = type(item.module) is nn.ReLU

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not self._listening(module):
                return
            try:
                self._depth.called(layer)
                tensor = first_floating(output)
                if tensor is None:
                    return
                if self._discovering and tensor.grad_fn is not None:
                    self._depth.weigh(item, tensor, self._nodes)
                    self._nodes.add(tensor.grad_fn)
                if not item.activation:
                    self._channels_first = item.channels_first
                on_channels = (self._channels_first and tensor.dim() > 2) or item.channels_first
                given = args[0] if relu and args else None
                self._measure(
                    layer.name, tensor, 1 if on_channels else -1, bounds, self._source(given, tensor)
                )
            except Exception as fault:
                self._on_fault(fault)

        return hook

    def _source(self, given: Any, output: Tensor) -> _Seat | None:
        """Where the sample of a ReLU's input is, if that is the tensor that was measured last, as it was."""
        if given is None or self._last is None:
            return None
        tensor, version, seat = self._last
        written = 1 if given is output else 0
        return seat if tensor() is given and version + written == given._version else None

    def _measure(
        self,
        key: str,
        tensor: Tensor,
        unit_dim: int | None,
        bounds: tuple[float, float] | None,
        relu_of: _Seat | None = None,
    ) -> None:
        seat = self._seats.get(key)
        # The recomputation of a checkpoint counts only where the pass before it could not be seen.
        if seat is not None and _in_backward() and seat.samples.holds(seat.row):
            return
        kind = tensor.device, tensor.dtype, tensor.numel()
        if seat is None or seat.kind != kind:
            seat = self._seats[key] = self._seat(key, kind, bounds)
        self._last = weakref.ref(tensor), tensor._version, seat
        samples, row = seat.samples, seat.row
        if relu_of is not None and relu_of.samples is samples and samples.put_relu(row, tensor, relu_of.row):
            return
        if unit_dim is not None:
            unit_dim = (unit_dim if tensor.dim() > 1 else -1) % max(tensor.dim(), 1)
        samples.put(row, tensor, unit_dim)

    def _seat(
        self, key: str, kind: tuple[torch.device, torch.dtype, int], bounds: tuple[float, float] | None
    ) -> _Seat:
        """The old row for outputs that fit into it, or a new one."""
        device, dtype, numel = kind
        numel *= 2 if dtype.is_complex else 1
        width = next((width for width in WIDTHS if width >= numel), WIDTHS[-1])
        wide = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
        group, old = (device, wide, width), self._seats.get(key)
        if old is not None and old.group[:2] == group[:2] and old.group[2] >= width:
            return old._replace(kind=kind)
        samples = self._groups.setdefault(group, Samples(*group))
        row = samples.add_row(bounds)
        if old is not None and old.group[0] == device:
            old.samples.move(old.row, samples, row)
        self._keys[group, row] = key
        return _Seat(kind, group, samples, row)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]


def _transformed() -> bool:
    return torch._C._functorch.maybe_current_level() is not None  # pyright: ignore


def first_floating(value: Any) -> Tensor | None:
    """The first dense, filled, floating or complex tensor in an output or arguments; None without one."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not value.is_nested
        real = value.is_floating_point() or value.is_complex()
        return value if dense and real and value.numel() else None
    parts: Sequence[Any] = ()
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, tuple | list):
        parts = value
    elif is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
    return next((found for part in parts if (found := first_floating(part)) is not None), None)
