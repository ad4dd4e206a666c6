"""Gradients, weights and updates: exact norms and extremes of every parameter, samples of what moved.

Flow: at the step boundary `parts` gathers one device's small parameters whole, and of large ones a sample,
the norm and the extremes; `numbers` reduces the host copies to a row of numbers a parameter.
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

Floats = NDArray[np.float64]


class ParameterNumbers(NamedTuple):
    """Numbers of each parameter, all of shape [parameters]; NaN where not measured."""

    numel: Floats
    grad_norm: Floats
    grad_absmax: Floats
    grad_zero: Floats
    """Share of exact zeros."""
    grad_nonfinite: Floats
    weight_norm: Floats
    weight_absmax: Floats
    weight_nonfinite: Floats
    update_norm: Floats
    """Norm of the last update, scaled up from the sample."""


class _Gathered:
    """Room for the elements of some tensors, of each at most SPREAD, in one flat buffer."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        sizes = np.array([tensor.numel() for tensor in tensors])
        self.counts = np.minimum(sizes, SPREAD)
        self.starts = np.cumsum(self.counts) - self.counts
        self.large = [i for i, size in enumerate(sizes) if size > SPREAD]
        self.buffer = torch.empty(int(self.counts.sum()), dtype=dtype, device=tensors[0].device)
        rooms = self.buffer.split(self.counts.tolist())
        self._rooms = [
            r if t.numel() > SPREAD else r.view(t.shape) for r, t in zip(rooms, tensors, strict=True)
        ]
        self.numel = sizes.astype(np.float64)
        self.values, self.room = np.empty((2, len(self.buffer)))
        self.shapes = [tensor.shape for tensor in tensors]

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these tensors have the shapes that the room was made for."""
        return [tensor.shape for tensor in tensors] == self.shapes

    def gather(self, tensors: Sequence[Tensor]) -> None:
        """Copy the elements in."""
        parts = list(tensors)
        for i in self.large:
            parts[i] = spread(parts[i], SPREAD)
        torch._foreach_copy_(self._rooms, parts)  # pyright: ignore

    def read(self, host: NDArray[np.floating]) -> None:
        """Take the host copy of the buffer over, in double precision."""
        np.copyto(self.values, host)

    def squares(self, values: Floats) -> Floats:
        """Sum of squares over the elements of each tensor."""
        return np.add.reduceat(np.multiply(values, values, out=self.room), self.starts)

    def zeros(self) -> Floats:
        """Share of exact zeros among the elements of each tensor."""
        return np.add.reduceat(self.values == 0, self.starts, dtype=np.float64) / self.counts

    def reduce(self, large: NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
        """Norm, largest abs(x) and number of non-finite elements of each tensor.

        `large` is the host copy of what was measured of the large tensors over all their elements.
        """
        with np.errstate(all="ignore"):
            norm = np.sqrt(self.squares(self.values))
            absmax = np.maximum.reduceat(np.abs(self.values, out=self.room), self.starts)
        bad = np.zeros(len(norm))
        if not np.isfinite(absmax).all():
            bad = np.add.reduceat(~np.isfinite(self.values), self.starts, dtype=np.float64)
        if self.large:
            norms, rest = np.split(large.astype(np.float64), [len(self.large)])
            low, high, bad[self.large] = rest.reshape(-1, 3).T
            norm[self.large], absmax[self.large] = norms, np.maximum(np.abs(low), np.abs(high))
        return norm, absmax, bad


class ParameterBank:
    """The parameters on one device in one number format, and samples of them at this step and the one
    before.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        self._dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        self._weights = [whole(parameter) for parameter in self.parameters]
        self._trainable: list[bool] = []
        self._now, self._before = (_Gathered(self._weights, self._dtype) for _ in range(2))
        self._gradients: _Gathered | None = None
        self._with_grad: list[int] = []
        self._sampled_at: int | None = None
        self._updated = False

    def screen(self) -> list[Tensor]:
        """A number on the device that is finite if every gradient is, shape [1]; none without gradients.

        It samples nothing: a sum is finite only if all its terms are. One that overflows is a false alarm,
        which a closer look at all elements settles.
        """
        sums = [_dense(grad).sum(dtype=self._dtype) for p in self.parameters if (grad := p.grad) is not None]
        return [torch.stack(sums).sum(0, keepdim=True)] if sums else []

    def remember(self, step: int) -> None:
        """Keep a sample of the weights as they are before this step's update."""
        self._before, self._now = self._now, self._before
        self._weights = [whole(parameter) for parameter in self.parameters]
        if not self._now.fits(self._weights):
            self._now, self._before = (_Gathered(self._weights, self._dtype) for _ in range(2))
            self._sampled_at = None
        self._trainable = [parameter.requires_grad for parameter in self.parameters]
        self._now.gather(self._weights)
        self._updated = self._sampled_at == step - 1
        self._sampled_at = step

    def parts(self) -> list[Tensor]:
        """Flat tensors that `numbers` needs on the host; `remember` must have come before."""
        found = [(i, _dense(g)) for i, p in enumerate(self.parameters) if (g := p.grad) is not None]
        # A sparse gradient may be without any entry.
        found = [(i, grad) for i, grad in found if grad.numel()]
        self._with_grad = [i for i, _ in found]
        grads = [grad for _, grad in found]
        if not grads:
            self._gradients = None
        elif self._gradients is None or not self._gradients.fits(grads):
            self._gradients = _Gathered(grads, self._dtype)
        parts = [self._now.buffer, self._before.buffer, self._of_large(self._now, self._weights)]
        if self._gradients is not None:
            self._gradients.gather(grads)
            parts += [self._gradients.buffer, self._of_large(self._gradients, grads)]
        return parts

    def _of_large(self, gathered: _Gathered, tensors: Sequence[Tensor]) -> Tensor:
        """Norm, lowest, highest and number of non-finite elements of each large tensor, one after the
        other.
        """
        large = [tensors[i] for i in gathered.large]
        if not large:
            return gathered.buffer[:0]
        norms = torch._foreach_norm(large, 2, dtype=self._dtype)  # pyright: ignore
        scalars = list(norms)
        zero = scalars[0].new_zeros(())
        for tensor in large:
            low, high = torch.aminmax(tensor)
            bad = zero if known_finite(low, high) else tensor.numel() - tensor.isfinite().sum()
            scalars += [low, high, bad]
        return torch.stack(scalars)

    def numbers(
        self,
        now: NDArray[np.floating],
        before: NDArray[np.floating],
        large: NDArray[np.floating],
        grads: NDArray[np.floating] | None = None,
        large_grads: NDArray[np.floating] | None = None,
    ) -> ParameterNumbers:
        """Reduce the host copies of `parts` to numbers of each parameter."""
        total = len(self.parameters)
        self._now.read(now)
        norm, absmax, bad = self._now.reduce(large)
        of_grads = np.full((4, total), np.nan)
        if self._gradients is not None and grads is not None and large_grads is not None:
            self._gradients.read(grads)
            zero = self._gradients.zeros()
            of_grads[:, self._with_grad] = *self._gradients.reduce(large_grads), zero
        moved = np.full(total, np.nan)
        if self._updated:
            self._before.read(before)
            apart = np.subtract(self._now.values, self._before.values, out=self._before.values)
            scale = self._now.numel / self._now.counts
            moved = np.where(self._trainable, np.sqrt(self._now.squares(apart) * scale), np.nan)
        grad_norm, grad_absmax, grad_bad, grad_zero = of_grads
        return ParameterNumbers(
            numel=self._now.numel,
            grad_norm=grad_norm,
            grad_absmax=grad_absmax,
            grad_zero=grad_zero,
            grad_nonfinite=grad_bad,
            weight_norm=norm,
            weight_absmax=absmax,
            weight_nonfinite=bad,
            update_norm=moved,
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


def joined(found: Sequence[ParameterNumbers]) -> ParameterNumbers:
    """The numbers of several banks, one after the other."""
    return ParameterNumbers(*(np.concatenate(numbers) for numbers in zip(*found, strict=True)))
