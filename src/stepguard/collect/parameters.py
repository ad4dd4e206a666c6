"""Gradients, weights and updates: exact norms and extremes of every parameter, samples of what moved.

Flow: at the step boundary `parts` gathers one device's small parameters whole, and of large ones a sample,
the norm and the extremes; `numbers` reduces the host copies to a row of numbers a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.collect.gathered import Gathered
from stepguard.collect.optimizer_state import SecondMoments
from stepguard.collect.passes import Passes
from stepguard.collect.sampling import whole
from stepguard.collect.screen import Screen

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

    def __init__(self, parameters: Sequence[nn.Parameter], asked: Collection[str]) -> None:
        self.parameters = list(parameters)
        self._asked = asked
        first = self.parameters[0]
        self._plain = all(p.dim() and not p.is_complex() for p in self.parameters)
        """Whether all are real numbers of one dimension or more, as they lie."""
        self._dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        self._weights = self._wholes(self.parameters)
        self._trainable: list[bool] = []
        self._device = first.device
        self._make_room()
        self._gradients: Gathered | None = None
        self._grad_passes = self._passes_of_grads([])
        self._screen = Screen(self._dtype)
        self.has_grad: list[bool] = []
        """Which parameters had a gradient at the last `screen` or `flags`."""
        self._with_grad: list[int] = []
        self._seconds = SecondMoments(self._dtype)
        self._sampled_at: int | None = None
        self._updated = False

    def _make_room(self) -> None:
        self._now, self._before = (Gathered(self._weights, self._dtype) for _ in range(2))
        grads = [self.parameters[i].grad for i in self._now.large]
        self._weight_passes = Passes(
            [self._weights[i] for i in self._now.large],
            self._dtype,
            self._device,
            in_turn=self._device.type == "cpu",
            exact="weight.absmax" in self._asked,
            sparse={place for place, grad in enumerate(grads) if grad is not None and grad.is_sparse},
        )

    def _passes_of_grads(self, grads: Sequence[Tensor]) -> Passes:
        exact = "grad.absmax" in self._asked
        return Passes(grads, self._dtype, self._device, in_turn=False, exact=exact)

    @property
    def sliced(self) -> bool:
        """Whether some weights are so many that a look reads a part of them only, unless told otherwise."""
        return self._weight_passes.sliced

    def screen(self) -> list[Tensor]:
        """Numbers on the device that are finite if every gradient is; none without gradients."""
        grads = [parameter.grad for parameter in self.parameters]
        self.has_grad = [grad is not None for grad in grads]
        there = [grad for grad in grads if grad is not None]
        dense = [grad for grad in there if not grad.is_sparse]
        found = self._screen(self._wholes(dense)) if dense else []
        if len(dense) < len(there):
            # A sparse gradient's terms are enough: if their sum is not finite, neither is the sum of all.
            sparse = [grad._values() for grad in there if grad.is_sparse]  # pyright: ignore
            found += [terms.sum(dtype=self._dtype) for terms in self._wholes(sparse)]
        # On the host each can be looked at where it is.
        return found if not found or self._device.type == "cpu" else [torch.stack(found).sum(0)]

    def flags(self) -> list[Tensor]:
        """One number on the device for each parameter that has a gradient, finite if all its elements are.

        Exact, in one call: the largest abs(x). At most one tensor; none without gradients.
        """
        grads = [parameter.grad for parameter in self.parameters]
        self.has_grad = [grad is not None for grad in grads]
        wholes = self._wholes([grad for grad in grads if grad is not None])
        there = [whole if whole.numel() else whole.new_zeros(1) for whole in wholes]
        return [torch.stack(torch._foreach_norm(there, math.inf))] if there else []  # pyright: ignore

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
            self._make_room()
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

    def parts(self, *, everything: bool) -> list[Tensor]:
        """Flat tensors that `numbers` needs on the host; `remember` must have come before.

        With `everything` all slices of very large weights are read.
        """
        grads = self._present()
        weights = [self._weights[i] for i in self._now.large]
        parts = [
            self._now.buffer,
            self._before.buffer,
            self._weight_passes.look(weights, everything=everything),
        ]
        if self._gradients is not None:
            # All elements first: the places of the sample are then in the cache.
            parts.append(self._grad_passes.look([grads[i] for i in self._gradients.large], everything=False))
            self._gradients.gather(grads)
            parts.append(self._gradients.buffer)
        return parts

    def _present(self) -> list[Tensor]:
        """The gradients that have elements, with room for them."""
        found = [(i, grad) for i, p in enumerate(self.parameters) if (grad := p.grad) is not None]
        wholes = zip(found, self._wholes([grad for _, grad in found]), strict=True)
        # A sparse gradient may be without any entry.
        there = [(i, grad) for (i, _), grad in wholes if grad.numel()]
        self._with_grad, grads = [i for i, _ in there], [grad for _, grad in there]
        if not grads:
            self._gradients = None
        elif self._gradients is None or not self._gradients.fits(grads):
            self._gradients = Gathered(grads, self._dtype)
            self._grad_passes = self._passes_of_grads([grads[i] for i in self._gradients.large])
        return grads

    def second_moments(self, optimizer: Optimizer) -> list[Tensor]:
        """The last parts that `numbers` needs, if the optimizer has a second moment; `parts` comes before."""
        return self._seconds.gather(self.parameters, optimizer) if self._with_grad else []

    def numbers(self, now: Host, before: Host, large: Host, *rest: Host) -> ParameterNumbers:
        """Reduce the host copies of `parts` and of `second_moments` to numbers of each parameter."""
        sums = np.zeros((len(SUMS), len(self.parameters)))
        largest = np.zeros((2, len(self.parameters)))
        with np.errstate(all="ignore"):
            sums[0] = self._now.numel
            sums[1], largest[0], sums[2] = self._now.reduce(now, self._weight_passes.found(large))
            if self._updated:
                sums[3] = self._trainable
                sums[4] = np.where(self._trainable, self._now.apart(now, before), 0.0)
            if self._gradients is not None:
                self._put_gradients(self._gradients, sums, largest[1], *rest)
        return ParameterNumbers(sums, largest)

    def _put_gradients(
        self, room: Gathered, sums: Floats, largest: Floats, large: Host, grads: Host, *seconds: Host
    ) -> None:
        there = self._with_grad
        sums[5, there], sums[6, there] = 1.0, self._now.numel[there]
        sums[7, there], largest[there], sums[8, there] = room.reduce(grads, self._grad_passes.found(large))
        sums[9, there] = self._now.numel[there] - room.numel + room.zeros(grads)
        if seconds:
            places = self._seconds.places
            own = grads if places == there else grads[room.where([there.index(i) for i in places])]
            sums[10, places] = numel = self._now.numel[places]
            sums[11, places] = self._seconds.compare(own, *seconds) * numel


def banks(parameters: Sequence[nn.Parameter], asked: Collection[str]) -> list[ParameterBank]:
    """Group parameters by device and number format; of signals that rules ask for nothing is left out."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return [ParameterBank(group, asked) for group in groups.values()]


def joined(found: Sequence[ParameterNumbers]) -> ParameterNumbers:
    """The numbers of several banks, one after the other."""
    if len(found) == 1:
        return found[0]
    return ParameterNumbers(*(np.concatenate(numbers, axis=1) for numbers in zip(*found, strict=True)))
