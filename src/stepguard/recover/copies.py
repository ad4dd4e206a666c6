"""Deep copies of training state, in what `torch.load(weights_only=True)` reads back."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type(None))
_MAPPINGS = (dict, OrderedDict, Counter)
_ARRAY = "numpy array"
"""Key of the one entry of a dict that stands for an array."""


def copied(value: Any, place: str = "state", *, home: bool = True) -> Any:
    """A deep copy: tensors detached and, with `home`, on the host, arrays as tensors, tied tensors tied.

    Raises:
        TypeError: something is in it that cannot be read back safely; names its place.
    """
    return _Copier(home).copy(value, place)


def unpacked(value: Any) -> Any:
    """The same state with its arrays as numpy arrays; tensors are not copied, containers are."""
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        return type(value)((key, unpacked(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(unpacked(item) for item in value)
    return value


def tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a state with its place, such as `optimizer/state/0/exp_avg`."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors(item, f"{place}/{number}")


def size(value: Any) -> int:
    """Bytes of all tensors of a state, tied ones once."""
    found = {tensor.data_ptr(): tensor.nbytes for _, tensor in tensors(value, "")}
    return sum(found.values())


def not_finite(value: Any, place: str, *, infinite: bool = False) -> str | None:
    """The place of the first tensor with NaN or, unless `infinite` is allowed, Inf; None if there is none."""
    for where, tensor in tensors(value, place):
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
            continue
        # One pass without a mask in memory: both ends are NaN where anything is, and Inf where it is an end.
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        ends = torch.stack(real.float().aminmax() if real.element_size() < 2 else real.aminmax())
        if bool(ends.isnan().any()) or not (infinite or bool(ends.isfinite().all())):
            return where
    return None


class _Copier:
    """One copy; remembers the tensors that were met, so that tied ones are copied once."""

    def __init__(self, home: bool) -> None:
        self._home = home
        self._met: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, np.ndarray):
            return {_ARRAY: torch.from_numpy(np.array(value))}
        if type(value) in _MAPPINGS:
            items = (
                (self.copy(key, place), self.copy(item, f"{place}/{key}")) for key, item in value.items()
            )
            return type(value)(dict(items))
        if isinstance(value, list | tuple):
            found = (self.copy(item, f"{place}/{number}") for number, item in enumerate(value))
            return list(found) if isinstance(value, list) else tuple(found)
        raise TypeError(
            f"{place}: expected tensors, arrays, numbers, text or containers of them,"
            f" got {type(value).__name__}"
        )

    def _tensor(self, value: Tensor) -> Tensor:
        if value.layout != torch.strided or value.numel() == 0:
            return self._copy(value)
        key = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if key not in self._met:
            self._met[key] = self._copy(value)
        return self._met[key]

    def _copy(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            return value.detach().to("cpu" if self._home else value.device, copy=True)
