"""Hooks on the modules of a model. They only measure: never raise, decide, or wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stepguard.collect.layers import BOUNDS, Watched
from stepguard.collect.samples import WIDTHS, Samples
from stepguard.signals import Layer

INPUT = "input"
"""Key of the first floating tensor that the model is given."""

_Group = tuple[torch.device, torch.dtype, int]

_FUNCTIONS = {
    "Relu": "ReLU",
    "LeakyRelu": "LeakyReLU",
    "Prelu": "PReLU",
    "Elu": "ELU",
    "Gelu": "GELU",
    "Silu": "SiLU",
    "Mish": "Mish",
    "Softplus": "Softplus",
    "Tanh": "Tanh",
    "Sigmoid": "Sigmoid",
    "LogSigmoid": "LogSigmoid",
    "Hardtanh": "Hardtanh",
    "Hardswish": "Hardswish",
    "Hardsigmoid": "Hardsigmoid",
}
"""What autograd calls an activation (`ReluBackward0`), and the module that does the same."""
_PASSED_ON = {
    *("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "Permute", "T"),
    *("MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "Mean", "NativeDropout", "Mul"),
}
"""What may stand between an activation and the layer it feeds: layout, pooling, dropout."""
_HOPS = 4


class Taps:
    """The hooks of one model, and the samples they fill.

    `active` says whether the forward passes to come are measured. Layers come to light in the order in which
    the first measured forward pass calls them.
    """

    def __init__(
        self, model: nn.Module, watched: Sequence[Watched], on_fault: Callable[[Exception], None]
    ) -> None:
        self.active = True
        self._on_fault = on_fault
        self._groups: dict[_Group, Samples] = {}
        self._rows: dict[str, tuple[_Group, int]] = {}
        self._keys: dict[tuple[_Group, int], str] = {}
        self._order: dict[str, Layer] = {}
        self._fed: dict[str, Layer] = {}
        """Layers fed by a plain function, and the pseudo-layer that shows its output."""
        self._nodes: set[Any] = set()
        self._discovering = True
        self._channels_first = False
        self._handles = [model.register_forward_pre_hook(self._on_input, with_kwargs=True)]
        for item in watched:
            if not item.activation:
                self._handles.append(item.module.register_forward_pre_hook(self._before(item)))
            self._handles.append(item.module.register_forward_hook(self._after(item)))

    def close(self) -> None:
        """Take all hooks off the model."""
        handles: list[RemovableHandle] = self._handles
        for handle in handles:
            handle.remove()
        self._handles = []

    def settle(self) -> list[Layer]:
        """End the search for layers; return those found, in the order of their first call."""
        self._discovering = False
        self._nodes.clear()
        return list(self._order.values())

    def forget(self) -> None:
        """Forget the forward passes since the last frame."""
        for samples in self._groups.values():
            samples.forget()

    def groups(self) -> Iterator[tuple[Samples, Callable[[int], str]]]:
        """Each buffer of samples, and what tells the name of the layer in a row of it."""
        for group, samples in self._groups.items():
            yield samples, lambda row, group=group: self._keys[group, row]

    def _listening(self, module: nn.Module) -> bool:
        """Whether this call counts: training, with gradients, and not the recomputation of a checkpoint."""
        return (
            self.active
            and module.training
            and torch.is_grad_enabled()
            and torch._C._current_graph_task_id() == -1  # pyright: ignore[reportPrivateUsage]
        )

    def _on_input(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self._listening(model):
            return
        try:
            given = first_floating((args, dict(kwargs)))
            if given is not None:
                self._measure(INPUT, given, -1, None)
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
                    layer = self._fed[name]
                    unit_dim = 1 if item.channels_first and given.dim() > 1 else -1
                    self._measure(layer.name, given, unit_dim, BOUNDS.get(layer.type))
            except Exception as fault:
                self._on_fault(fault)

        return hook

    def _discover(self, name: str, given: Tensor) -> None:
        """See whether a plain function made this input: autograd remembers which."""
        node = given.grad_fn
        for _ in range(_HOPS):
            if node is None or node in self._nodes:
                return
            kind = node.name().removesuffix("0").removesuffix("1").removesuffix("Backward")
            if kind in _FUNCTIONS:
                self._nodes.add(node)
                self._fed[name] = layer = Layer(f"{name}.input", _FUNCTIONS[kind])
                self._order.setdefault(layer.name, layer)
                return
            if kind not in _PASSED_ON:
                return
            node = node.next_functions[0][0]

    def _after(self, item: Watched) -> Callable[..., None]:
        layer, bounds = item.layer, BOUNDS.get(item.layer.type)

        def hook(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if not self._listening(module):
                return
            try:
                self._order.setdefault(layer.name, layer)
                tensor = first_floating(output)
                if tensor is None:
                    return
                if self._discovering and tensor.grad_fn is not None:
                    self._nodes.add(tensor.grad_fn)
                if not item.activation:
                    self._channels_first = item.channels_first
                on_channels = (self._channels_first and tensor.dim() > 2) or item.channels_first
                self._measure(layer.name, tensor, 1 if on_channels else -1, bounds)
            except Exception as fault:
                self._on_fault(fault)

        return hook

    def _measure(self, key: str, tensor: Tensor, unit_dim: int, bounds: tuple[float, float] | None) -> None:
        if tensor.dim() < 2:
            unit_dim = -1
        dtype = torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32
        numel = tensor.numel() * (2 if tensor.is_complex() else 1)
        group = tensor.device, dtype, next((width for width in WIDTHS if width >= numel), WIDTHS[-1])
        row = self._rows.get(key)
        if row is None or row[0][:2] != group[:2] or row[0][2] < group[2]:
            samples = self._groups.setdefault(group, Samples(*group))
            row = group, samples.add_row(bounds)
            self._rows[key], self._keys[row] = row, key
        self._groups[row[0]].put(row[1], tensor, unit_dim)


def first_floating(value: Any) -> Tensor | None:
    """The first dense, filled, floating or complex tensor in an output or arguments; None without one."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided
        real = value.is_floating_point() or value.is_complex()
        return value if dense and real and value.numel() else None
    parts: Sequence[Any] = ()
    if isinstance(value, Mapping):
        parts = list(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    elif isinstance(value, (tuple, list)):
        parts = value  # pyright: ignore[reportUnknownVariableType]
    elif hasattr(value, "__dataclass_fields__"):
        parts = list(vars(value).values())
    return next((found for part in parts if (found := first_floating(part)) is not None), None)
