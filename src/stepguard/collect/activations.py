"""Activations: modules, plain functions as autograd remembers them, and where bounded ones are flat."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_ACTIVATION_NAME = re.compile(r"relu|elu|silu|swish|mish|tanh|sigmoid|softplus|activation", re.IGNORECASE)

BOUNDS: dict[str, tuple[float, float]] = {
    "Tanh": (-0.995, 0.995),
    "Sigmoid": (0.0025, 0.9975),
    "Softsign": (-0.9, 0.9),
    "Hardsigmoid": (0.0, 1.0),
    "ReLU6": (-float("inf"), 6.0),
}
"""Outputs at or beyond which a bounded activation is flat: its slope is at most 1 % of its steepest.

The zero side of ReLU6 is left out: a unit that rests at zero is `act.dead`, not saturated."""

FUNCTIONS = {
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
PASSED_ON = re.compile(
    r"(Unsafe)?View|Reshape|Squeeze|Unsqueeze|Transpose|Permute|^T$|Pool|Mean|Dropout|^Mul$"
)
"""What may stand between an activation and the layer it feeds: layout, pooling, dropout."""


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an activation: one of torch's, or a leaf of one's own that is named like one."""
    if next(module.children(), None) is not None:
        return False
    of_torch = any(base.__module__ == "torch.nn.modules.activation" for base in type(module).__mro__)
    return of_torch or bool(_ACTIVATION_NAME.search(type(module).__name__))


def bounds_of(module: nn.Module) -> tuple[float, float] | None:
    """The outputs at and beyond which the module is flat; None if it is nowhere, or not known to be."""
    if type(module) is nn.Hardtanh:
        return float(module.min_val), float(module.max_val)
    return BOUNDS.get(type(module).__name__)


def function_of(kind: str, node: Any) -> tuple[str, tuple[float, float] | None]:
    """The module that does what a node of autograd does, and where it is flat; `kind` is one of FUNCTIONS."""
    if kind != "Hardtanh":
        return FUNCTIONS[kind], BOUNDS.get(FUNCTIONS[kind])
    low, high = float(node._saved_min_val), float(node._saved_max_val)
    return ("ReLU6", BOUNDS["ReLU6"]) if (low, high) == (0.0, 6.0) else ("Hardtanh", (low, high))
