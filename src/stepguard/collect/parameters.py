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
from torch.optim import Optimizer

from stepguard.collect.gathered import Gathered
from stepguard.collect.optimizer_state import second_moment_ratios
from stepguard.collect.sampling import whole

SUMS = (
    *("numel", "weight squares", "weight nonfinite", "updated", "update squares"),
    *("with grad", "grad numel", "grad squares", "grad nonfinite", "grad zeros"),
    *("compared", "ratio squares"),
)
"""Rows of `ParameterNumbers.sums`.

"updated" and "with grad" are 1 where what stands behind was measured, "compared" is then the number of
elements.
"""

Floats = NDArray[np.float64]
Host = NDArray[np.floating]


class ParameterNumbers(NamedTuple):
    """Numbers of each parameter, in a form whose sums over parameters have a meaning."""

    sums: Floats
    """Shape [SUMS, parameters]."""
    largest: Floats
    """Largest abs(x) of the weights and of the gradients, shape [2, parameters]."""


class ParameterBank:
    """The parameters on one device in one number format, and samples of them at this step and the one
    before.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        self._plain = all(p.dim() and not p.is_complex() for p in self.parameters)
        """Whether all are real numbers of one dimension or more, as they lie."""
        self._dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        self._weights = self._wholes(self.parameters)
        self._trainable: list[bool] = []
        self._now, self._before = (Gathered(self._weights, self._dtype) for _ in range(2))
        self._gradients: Gathered | None = None
        self.has_grad: list[bool] = []
        """Which parameters had a gradient at the last `screen`."""
        self._with_grad: list[int] = []
        self._with_ratio: list[int] = []
        self._sampled_at: int | None = None
        self._updated = False

    def screen(self) -> list[Tensor]:
        """Numbers on the device that are finite if every gradient is; none without gradients.

        It samples nothing: a sum is finite only if all its terms are. One that overflows is a false alarm,
        which a closer look at all elements settles.
        """
        grads = [parameter.grad for parameter in self.parameters]
        self.has_grad = [grad is not None for grad in grads]
        there = self._wholes([grad for grad in grads if grad is not None])
        found = [grad.sum(dtype=self._dtype) for grad in there]
        # On the host each can be looked at where it is.
        return found if not found or found[0].device.type == "cpu" else [torch.stack(found).sum(0)]

    def _wholes(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Weights or gradients as real numbers of one dimension or more; of sparse ones what is there."""
        if self._plain and not any(tensor.is_sparse for tensor in tensors):
            return tensors
        return [whole(tensor.coalesce().values() if tensor.is_sparse else tensor) for tensor in tensors]

    def remember(self, step: int) -> None:
        """Keep a sample of the weights as they are before this step's update."""
        self._before, self._now = self._now, self._before
        self._weights = self._wholes(self.parameters)
        if not self._now.fits(self._weights):
            self._now, self._before = (Gathered(self._weights, self._dtype) for _ in range(2))
            self._sampled_at = None
        self._trainable = [parameter.requires_grad for parameter in self.parameters]
        self._now.gather(self._weights)
        self._updated = self._sampled_at == step - 1
        self._sampled_at = step

    def kept(self) -> tuple[int, NDArray[np.floating]] | None:
        """The step before which the weights were sampled last, and the sample; None if they never were."""
        sample = self._now.buffer.to("cpu", copy=True).numpy()
        return None if self._sampled_at is None else (self._sampled_at, sample)

    def keep(self, step: int, sample: NDArray[np.floating]) -> None:
        """Take up the sample that `kept` gave of a bank of the same parameters; others are left alone."""
        if len(sample) == len(self._now.buffer):
            self._now.buffer.copy_(torch.from_numpy(sample))
            self._sampled_at = step

    def parts(self) -> list[Tensor]:
        """Flat tensors that `numbers` needs on the host; `remember` must have come before."""
        found = [(i, grad) for i, p in enumerate(self.parameters) if (grad := p.grad) is not None]
        wholes = zip(found, self._wholes([grad for _, grad in found]), strict=True)
        # A sparse gradient may be without any entry.
        there = [(i, grad) for (i, _), grad in wholes if grad.numel()]
        self._with_grad, grads = [i for i, _ in there], [grad for _, grad in there]
        if not grads:
            self._gradients = None
        elif self._gradients is None or not self._gradients.fits(grads):
            self._gradients = Gathered(grads, self._dtype)
        parts = [self._now.buffer, self._before.buffer, self._now.measure(self._weights)]
        if self._gradients is not None:
            # All elements first: the places of the sample are then in the cache.
            large = self._gradients.measure(grads)
            self._gradients.gather(grads)
            parts += [self._gradients.buffer, large]
        return parts

    def ratios(self, optimizer: Optimizer) -> list[Tensor]:
        """The last part that `numbers` needs, if the optimizer has a second moment; `parts` comes before."""
        found = second_moment_ratios(self.parameters, optimizer) if self._with_grad else None
        self._with_ratio = [] if found is None else found.places
        return [] if found is None else [found.values]

    def numbers(self, now: Host, before: Host, large: Host, *rest: Host) -> ParameterNumbers:
        """Reduce the host copies of `parts` and of `ratios` to numbers of each parameter."""
        sums = np.zeros((len(SUMS), len(self.parameters)))
        largest = np.zeros((2, len(self.parameters)))
        with np.errstate(all="ignore"):
            sums[0] = self._now.numel
            sums[1], largest[0], sums[2] = self._now.reduce(now, large)
            if self._updated:
                sums[3] = self._trainable
                sums[4] = np.where(self._trainable, self._now.apart(now, before), 0.0)
            if self._gradients is not None:
                grads, large_grads, *ratios = rest
                there = self._with_grad
                sums[5, there], sums[6, there] = 1.0, self._now.numel[there]
                sums[7, there], largest[1, there], sums[8, there] = self._gradients.reduce(grads, large_grads)
                absent = self._now.numel[there] - self._gradients.numel
                sums[9, there] = absent + self._gradients.zeros(grads)
                for values in ratios:
                    sums[10, self._with_ratio] = numel = self._now.numel[self._with_ratio]
                    sums[11, self._with_ratio] = values * numel
        return ParameterNumbers(sums, largest)


def banks(parameters: Sequence[nn.Parameter]) -> list[ParameterBank]:
    """Group parameters by device and number format."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return [ParameterBank(group) for group in groups.values()]


def joined(found: Sequence[ParameterNumbers]) -> ParameterNumbers:
    """The numbers of several banks, one after the other."""
    if len(found) == 1:
        return found[0]
    return ParameterNumbers(*(np.concatenate(numbers, axis=1) for numbers in zip(*found, strict=True)))
