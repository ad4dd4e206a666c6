"""How the gradients compare with the second moment that an optimizer divides them by: `optim.rms_ratio`.

Flow: parameters of one device and their optimizer in; out, on that device, mean(g^2 / v) of each parameter
whose optimizer keeps a second moment. Near 1 it keeps up; above, the optimizer takes larger steps than it is
meant to.

Source: Wortsman et al., Stable and low-precision training for large-scale vision-language models,
arXiv 2304.13013.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepguard.collect.sampling import spread, whole

SPREAD = 4096
"""Elements of a parameter that are looked at; smaller ones are taken whole."""
_LEAST = 1e-36
"""Of a second moment: where it is zero so is the gradient, which then adds nothing."""


class Ratios(NamedTuple):
    """The ratios of some parameters."""

    places: list[int]
    """Which of the parameters, in ascending order."""
    values: Tensor
    """mean(g^2 / v) of each, shape [places], on the parameters' device."""


class _Moment(NamedTuple):
    """A parameter's gradient and second moments, and how this step changes them."""

    place: int
    gradient: Tensor
    second: Tensor
    largest: Tensor | None
    """The largest so far, which AMSGrad divides by in place of it."""
    keep: float
    """Factor of the second moment as it is."""
    take: float
    """Factor of g^2, which is added to it."""
    corrected: tuple[float, Any] | None
    """Decay, and the steps before this one, where the optimizer corrects the bias of its youth."""


def second_moment_ratios(parameters: Sequence[Tensor], optimizer: Optimizer) -> Ratios | None:
    """Compare gradients with second moments as this step's update will find them; None if there are none.

    `v` is the second moment with this step's gradient in it, and with the bias correction where the
    optimizer has one, as in the paper: of Adam and its like (`exp_avg_sq`, `max_exp_avg_sq`), of RMSprop and
    Adadelta (`square_avg`) and of Adagrad (`sum`). Where the decay is not known, it is the buffer as it is.
    Left out are parameters without gradient, with a sparse one, or with a buffer of another shape (factored
    or quantised), and before its first step every parameter. Weight decay inside the gradient and the centre
    of a centred RMSprop are not looked at. Nothing waits for the device.

    Parameters must lie on one device; of large ones evenly spread elements are taken.
    """
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = list(_moments(parameters, optimizer.state, groups))
    if not found:
        return None
    gradients = [moment.gradient for moment in found]
    squares = torch._foreach_mul(gradients, gradients)  # pyright: ignore
    seconds = torch._foreach_mul([m.second for m in found], [m.keep for m in found])  # pyright: ignore
    torch._foreach_add_(seconds, torch._foreach_mul(squares, [m.take for m in found]))  # pyright: ignore
    for second, moment in zip(seconds, found, strict=True):
        if moment.largest is not None:
            torch.maximum(second, moment.largest, out=second)
    torch._foreach_clamp_min_(seconds, _LEAST)  # pyright: ignore
    torch._foreach_sqrt_(seconds)  # pyright: ignore
    norms = torch._foreach_norm(torch._foreach_div(gradients, seconds))  # pyright: ignore
    torch._foreach_mul_(norms, [(_on_host(m) / m.gradient.numel()) ** 0.5 for m in found])  # pyright: ignore
    values = torch.stack(norms).square()
    return Ratios([moment.place for moment in found], values * _on_device(found, values))


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
        corrects = name == "exp_avg_sq" and take > 0 and "step" in state
        largest = state.get("max_exp_avg_sq")
        yield _Moment(
            place=place,
            gradient=_sample(grad),
            second=_sample(state[name]),
            largest=_sample(largest) if _fits(largest, parameter) else None,
            keep=keep,
            take=take,
            corrected=(keep, state["step"]) if corrects else None,
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


def _sample(tensor: Tensor) -> Tensor:
    """At most SPREAD elements, in single precision or wider; they are the same of every tensor of a shape."""
    elements = spread(whole(tensor), SPREAD)
    return elements if elements.dtype == torch.float64 else elements.float()


def _on_host(moment: _Moment) -> float:
    """The bias correction of a step count that lies on the host; 1 for another, and for none."""
    if moment.corrected is None or _far(moment.corrected[1]):
        return 1.0
    decay, steps = moment.corrected
    return 1.0 - decay ** (float(steps) + 1)


def _on_device(found: Sequence[_Moment], like: Tensor) -> Tensor | float:
    """The bias corrections of step counts that lie on the device (fused and capturable optimizers)."""
    far = [moment.corrected is not None and _far(moment.corrected[1]) for moment in found]
    if not any(far):
        return 1.0
    one = like.new_ones(())
    corrections = [
        1 - m.corrected[0] ** (m.corrected[1].to(like.dtype) + 1) if is_far and m.corrected else one
        for is_far, m in zip(far, found, strict=True)
    ]
    return torch.stack([correction.reshape(()) for correction in corrections])


def _far(steps: Any) -> bool:
    return isinstance(steps, Tensor) and steps.device.type != "cpu"
