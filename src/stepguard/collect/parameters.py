"""Gradients, weights and updates: exact norms and extremes of every parameter, samples of what moved.

Flow: at the step boundary `reduce` turns one device's parameters into one small tensor there; `numbers` turns
its host copy into a row of numbers a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stepguard.collect.samples import known_finite
from stepguard.collect.sampling import spread, whole

SPREAD = 4096
"""Elements of a parameter that show its zero gradients and its update; smaller ones are taken whole."""


class ParameterNumbers(NamedTuple):
    """Numbers of each parameter, all of shape [parameters]; NaN where not measured."""

    numel: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    grad_absmax: NDArray[np.float64]
    grad_zero: NDArray[np.float64]
    """Share of exact zeros."""
    grad_nonfinite: NDArray[np.float64]
    weight_norm: NDArray[np.float64]
    weight_absmax: NDArray[np.float64]
    weight_nonfinite: NDArray[np.float64]
    update_norm: NDArray[np.float64]
    """Norm of the last update, scaled up from the sample."""


class ParameterBank:
    """The parameters on one device in one number format, and a sample of them from the step before."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        self._dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        self._zero = torch.zeros((), dtype=self._dtype, device=first.device)
        self._views: list[Tensor] = []
        self._pointers: list[int] = []
        self._before: list[Tensor] = []
        self._now: list[Tensor] = []
        self._sampled_at: int | None = None
        self._grads: list[int] = []
        self._updated = False

    def screen(self) -> Tensor | None:
        """A number on the device that is finite if every gradient is, shape [1]; None without gradients.

        It samples nothing: a sum is finite only if all its terms are. One that overflows is a false alarm,
        which a closer look at all elements settles.
        """
        sums = [_dense(grad).sum(dtype=self._dtype) for p in self.parameters if (grad := p.grad) is not None]
        return torch.stack(sums).sum(0, keepdim=True) if sums else None

    def remember(self, step: int) -> None:
        """Keep a sample of the weights as they are before this step's update."""
        views = self._sample_views()
        if not self._now:
            self._before = [torch.empty_like(view) for view in views]
            self._now = [torch.empty_like(view) for view in views]
        self._before, self._now = self._now, self._before
        torch._foreach_copy_(self._now, views)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        self._updated = self._sampled_at is not None and self._sampled_at == step - 1
        self._sampled_at = step

    def _sample_views(self) -> list[Tensor]:
        pointers = [parameter.data_ptr() for parameter in self.parameters]
        if pointers != self._pointers:
            self._views = [spread(whole(parameter), SPREAD) for parameter in self.parameters]
            self._pointers = pointers
        return self._views

    def reduce(self) -> Tensor:
        """Reduce gradients, weights and the remembered update to one flat tensor on the device."""
        self._grads = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        grads = [_dense(g) for i in self._grads if (g := self.parameters[i].grad) is not None]
        weights = [whole(parameter) for parameter in self.parameters]
        scalars = [*self._extremes(grads), *self._extremes(weights)]
        scalars += self._norms(grads) + self._norms(weights)
        scalars += [torch.count_nonzero(spread(grad, SPREAD)) for grad in grads]
        if self._updated:
            moved = torch._foreach_sub(self._now, self._before)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            scalars += self._norms(moved)
        return torch.stack([scalar.to(self._dtype) for scalar in scalars])

    def _norms(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not tensors:
            return []
        norms = torch._foreach_norm(list(tensors), 2, dtype=self._dtype)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return list(norms)

    def _extremes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Lowest, highest and number of non-finite elements of each."""
        scalars: list[Tensor] = []
        for tensor in tensors:
            low, high = torch.aminmax(tensor) if tensor.numel() else (self._zero, self._zero)
            fine = known_finite(low, high)
            scalars += [low, high, self._zero if fine else tensor.numel() - tensor.isfinite().sum()]
        return scalars

    def numbers(self, host: NDArray[np.floating]) -> ParameterNumbers:
        """Turn the host copy of what `reduce` gave into numbers of each parameter."""
        host, total, some = host.astype(np.float64), len(self.parameters), self._grads
        sizes = np.array([whole(parameter).numel() for parameter in self.parameters], dtype=np.float64)
        sampled = np.minimum(sizes, SPREAD)
        parts = iter(np.split(host, np.cumsum([3 * len(some), 3 * total, len(some), total, len(some)])))
        grad_low, grad_high, grad_bad = next(parts).reshape(-1, 3).T
        low, high, bad = next(parts).reshape(-1, 3).T
        grad_norm, norm, nonzero, moved = parts
        scale = np.sqrt(sizes / np.maximum(sampled, 1))

        def of_grads(values: NDArray[np.float64]) -> NDArray[np.float64]:
            full = np.full(total, np.nan)
            full[some] = values
            return full

        kept = np.array([_dense(g).numel() for i in some if (g := self.parameters[i].grad) is not None])
        looked_at = np.minimum(kept, SPREAD) if len(kept) else kept
        trainable = np.array([parameter.requires_grad for parameter in self.parameters])
        return ParameterNumbers(
            numel=sizes,
            grad_norm=of_grads(grad_norm),
            grad_absmax=of_grads(np.maximum(np.abs(grad_low), np.abs(grad_high))),
            grad_zero=of_grads(1 - nonzero / np.maximum(looked_at, 1)),
            grad_nonfinite=of_grads(grad_bad),
            weight_norm=norm,
            weight_absmax=np.maximum(np.abs(low), np.abs(high)),
            weight_nonfinite=bad,
            update_norm=np.where(trainable, moved * scale, np.nan)
            if self._updated
            else np.full(total, np.nan),
        )


def _dense(grad: Tensor) -> Tensor:
    """The gradient's elements; of a sparse one those that are there."""
    return whole(grad.coalesce().values() if grad.is_sparse else grad)


def banks(parameters: Sequence[nn.Parameter]) -> list[ParameterBank]:
    """Group parameters by device and number format."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return [ParameterBank(group) for group in groups.values()]
