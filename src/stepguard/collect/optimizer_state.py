"""How the gradients compare with the second moment that an optimizer divides them by: `optim.rms_ratio`.

Flow: parameters of one device and their optimizer in; out, on the host, mean(g^2 / v) of each parameter whose
optimizer keeps a second moment. Near 1 it keeps up; above, the optimizer takes larger steps than it is
meant to.

Source: Wortsman et al., Stable and low-precision training for large-scale vision-language models,
arXiv 2304.13013.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from stepguard.collect.gathered import Gathered
from stepguard.collect.sampling import whole

Floats = NDArray[np.float64]
Host = NDArray[np.floating]

_LEAST = 1e-36
"""Of a second moment: where it is zero so is the gradient, which then adds nothing."""


class _Moment(NamedTuple):
    """A parameter's second moments, and how this step changes them."""

    place: int
    second: Tensor
    largest: Tensor | None
    """The largest so far, which AMSGrad divides by in place of it."""
    keep: float
    """Factor of the second moment as it is."""
    take: float
    """Factor of g^2, which is added to it."""
    corrects: float | None
    """Decay, where the optimizer corrects the bias of its youth."""
    steps: float | Tensor
    """Steps before this one: a tensor where they lie on a device."""


class SecondMoments:
    """The second moments of parameters on one device, and how this step's gradients compare with them.

    `v` is the second moment with this step's gradient in it, and with the bias correction where the
    optimizer has one, as in the paper: of Adam and its like (`exp_avg_sq`, `max_exp_avg_sq`), of RMSprop and
    Adadelta (`square_avg`) and of Adagrad (`sum`). Where the decay is not known, it is the buffer as it is.
    Left out are parameters without gradient, with a sparse one, or with a buffer of another shape (factored
    or quantised), and before its first step every parameter. Weight decay inside the gradient and the centre
    of a centred RMSprop are not looked at. Of large parameters the same elements are taken as `Gathered`
    takes of their gradients.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.places: list[int] = []
        """Which of the parameters were found at the last `gather`, in ascending order."""
        self._dtype = dtype
        self._moments: list[_Moment] = []
        self._seconds: Gathered | None = None
        self._largest: Gathered | None = None

    def gather(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> list[Tensor]:
        """Flat tensors that `compare` needs on the host; none without a second moment. Waits for nothing."""
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        self._moments = found = list(_moments(parameters, optimizer.state, groups))
        self.places = [moment.place for moment in found]
        if not found:
            return []
        self._seconds = self._gathered(self._seconds, [moment.second for moment in found])
        largest = [moment.largest for moment in found if moment.largest is not None]
        far = (moment.steps for moment in found)
        steps = [each.reshape(()).to(self._dtype) for each in far if isinstance(each, Tensor)]
        parts = [self._seconds.buffer]
        if largest:
            self._largest = self._gathered(self._largest, largest)
            parts.append(self._largest.buffer)
        return [*parts, *([torch.stack(steps)] if steps else [])]

    def _gathered(self, room: Gathered | None, tensors: Sequence[Tensor]) -> Gathered:
        wholes = [whole(tensor) for tensor in tensors]
        if room is None or not room.fits(wholes):
            room = Gathered(wholes, self._dtype)
        room.gather(wholes)
        return room

    def compare(self, gradients: Host, seconds: Host, *rest: Host) -> Floats:
        """Give mean(g^2 / v) of each parameter in `places`.

        `gradients` are the elements of their gradients as `Gathered` takes them, the others the host copies
        of what `gather` returned.
        """
        room, moments, parts = self._seconds, self._moments, iter(rest)
        assert room is not None
        v = np.square(gradients)
        v *= _each([moment.take for moment in moments], room.counts, v.dtype)
        v += seconds * _each([moment.keep for moment in moments], room.counts, v.dtype)
        if any(moment.largest is not None for moment in moments):
            self._raise_to(v, next(parts))
        np.maximum(v, _LEAST, out=v)
        ratios = np.square(np.divide(gradients, np.sqrt(v, out=v), out=v), out=v)
        return np.add.reduceat(ratios, room.starts) / room.counts * self._corrections(*parts)

    def _raise_to(self, v: Host, largest: Host) -> None:
        """Let `v` be no less than its largest so far, of those parameters that have one."""
        room, rooms = self._seconds, self._largest
        assert room is not None and rooms is not None
        with_largest = [i for i, moment in enumerate(self._moments) if moment.largest is not None]
        for i, start, count in zip(with_largest, rooms.starts, rooms.counts, strict=True):
            own = v[room.starts[i] : room.starts[i] + count]
            np.maximum(own, largest[start : start + count], out=own)

    def _corrections(self, *far: Host) -> Floats:
        """Bias corrections, 1 where there is none; `far` are the step counts that lie on the device."""
        brought: Iterator[float] = (steps for part in far for steps in part.tolist())
        steps = (next(brought) if isinstance(m.steps, Tensor) else m.steps for m in self._moments)
        decays = (moment.corrects for moment in self._moments)
        return np.array(
            [1.0 if d is None else 1.0 - d ** (n + 1) for d, n in zip(decays, steps, strict=True)]
        )


def _each(factors: Sequence[float], counts: NDArray[np.intp], dtype: np.dtype[Any]) -> Host | float:
    """The factor of each element; one for all where parameters agree."""
    same = all(factor == factors[0] for factor in factors)
    return factors[0] if same else np.repeat(np.array(factors, dtype), counts)


def _moments(
    parameters: Sequence[Tensor], states: Mapping[Tensor, Any], groups: Mapping[Tensor, Mapping[str, Any]]
) -> Iterator[_Moment]:
    for place, parameter in enumerate(parameters):
        state, grad = states.get(parameter), parameter.grad
        if not state or grad is None or grad.is_sparse or not parameter.numel():
            continue
        name = next((name for name in ("exp_avg_sq", "square_avg", "sum") if name in state), None)
        if name is None or not _fits(state[name], parameter):
            continue
        group = groups.get(parameter, {})
        keep, take = _factors(name, group)
        largest = state.get("max_exp_avg_sq")
        corrects = name == "exp_avg_sq" and take > 0 and "step" in state
        yield _Moment(
            place=place,
            second=state[name],
            largest=largest if _fits(largest, parameter) else None,
            keep=keep,
            take=take,
            corrects=keep if corrects else None,
            steps=_steps(state["step"]) if corrects else 0.0,
        )


def _fits(buffer: Any, parameter: Tensor) -> bool:
    """Whether it holds a number for each of the parameter's elements."""
    if not isinstance(buffer, Tensor):
        return False
    numbers = buffer.is_floating_point() or buffer.is_complex()
    return numbers and buffer.shape == parameter.shape and buffer.device == parameter.device


def _factors(name: str, group: Mapping[str, Any]) -> tuple[float, float]:
    """What this step makes of a second moment v and a gradient g: `keep * v + take * g^2`."""
    if name == "sum":
        return 1.0, 1.0
    betas = group.get("betas")
    decay = betas[1] if betas is not None else group.get("alpha", group.get("rho"))
    return (1.0, 0.0) if decay is None else (float(decay), 1.0 - float(decay))


def _steps(steps: Any) -> float | Tensor:
    """A step count as a number, or as it is where it lies on a device (fused and capturable optimizers)."""
    return steps if isinstance(steps, Tensor) and steps.device.type != "cpu" else float(steps)
