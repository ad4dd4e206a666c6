"""What a restart changes: learning rate, initialisation, clipping. Each works in place."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.collect.activations import is_activation
from stepguard.collect.taps import first_floating
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.recover.protocols import Scheduler
from stepguard.recover.standardised import Standardised

_LR_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""What an optimizer and its scheduler keep of the learning rate in a parameter group."""
_SCHEDULED = ("base_lrs", "max_lrs")
"""What schedulers keep of it themselves, for each group; ReduceLROnPlateau keeps nothing."""
_LIMITS, _STEP = "step_sizes", "step_size"
"""What Rprop keeps: the least and largest step of a group, and the steps of each parameter's weights."""
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
STANDARDISE = "standardise"
"""The initialisation that also has layers take their steps on standardised inputs."""
COMMON = 0.25
"""Below this share of the spread that is from sample to sample, LSUV goes by units."""
_FLAT = 1e-3
"""A unit that varies by less, relative to its layer, has no spread of its own to divide by."""
_GAINS = {"Tanh": "tanh", "Sigmoid": "sigmoid", "SELU": "selu"}


OnFault = Callable[[Exception], None]


def apply_attempt(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Scheduler | None,
    attempt: Attempt,
    on_fault: OnFault,
    *,
    standardised: Standardised | None = None,
    begins: Callable[[], bool] = lambda: True,
) -> None:
    """Make model and optimizer what the attempt asks for; what is done at each step is left to the step.

    `on_fault` is told what goes wrong later, in the forward pass that LSUV adds; `begins` tells by then
    whether the training still begins, and does not go on from a state that was loaded. Outside of
    `supervise`, which has done so, the generators are seeded from here on, if the attempt has a seed.
    """
    if attempt.seed and CURRENT.get() is None:
        seed_generators(attempt.seed)
    if attempt.pace is not None:
        hold_steps(optimizer)
    if attempt.lr_scale != 1.0:
        scale_lr(optimizer, scheduler, attempt.lr_scale)
    if attempt.init == "kaiming":
        kaiming(model)
    elif attempt.init is not None:
        inputs = standardised or Standardised()
        if attempt.init == STANDARDISE:
            inputs.begin(model)
        lsuv(model, on_fault, inputs, begins)


def seed_generators(seed: int) -> None:
    """Seed the generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def scale_lr(optimizer: Optimizer, scheduler: Scheduler | None, factor: float) -> None:
    """Scale the learning rate of every group, and what the scheduler computes it from.

    Rprop's is only that of its first step; after it each weight has a step of its own, which is scaled.
    """
    for group in optimizer.param_groups:
        for key in _LR_KEYS:
            if key in group:
                group[key] = group[key] * factor
        if _LIMITS in group:
            group[_LIMITS] = tuple(factor * limit for limit in group[_LIMITS])
    for state in optimizer.state.values():
        if _STEP in state:
            state[_STEP].mul_(factor)
    if scheduler is not None:
        _scale_scheduler(scheduler, factor)


def _scale_scheduler(scheduler: Scheduler, factor: float) -> None:
    """Scale what a scheduler, and those that it is made of, compute learning rates from."""
    for name in _SCHEDULED:
        if hasattr(scheduler, name):
            setattr(scheduler, name, [lr * factor for lr in getattr(scheduler, name)])
    for part in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(part, factor)


def hold_steps(optimizer: Optimizer) -> None:
    """Have Rprop's steps stay at its learning rate, so that all weights of a layer share in its pace.

    Left to themselves they shrink to nothing on batches that disagree on the sign of a gradient.
    """
    for group in optimizer.param_groups:
        if _LIMITS in group:
            group[_LIMITS] = (group["lr"], group["lr"])


def clip_gradients(optimizer: Optimizer, most: float) -> None:
    """Scale all gradients down together so that their Euclidean norm is at most `most`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, most)


@torch.no_grad()
def kaiming(model: nn.Module) -> None:
    """Initialise every linear and convolutional layer for the activation that follows it; biases at zero.

    He et al. 2015 (arXiv 1502.01852). A layer that no activation module follows is taken to feed a ReLU, the
    last one to feed nothing. Embeddings, norms and recurrent layers get what they have by default; what is
    frozen stays.
    """
    _reset(model)
    modules = [module for module in model.modules() if isinstance(module, _WEIGHTED) or is_activation(module)]
    last = max((i for i, module in enumerate(modules) if isinstance(module, _WEIGHTED)), default=-1)
    for place, module in enumerate(modules):
        if not isinstance(module, _WEIGHTED) or not _trained(module):
            continue
        follower = modules[place + 1] if place + 1 < len(modules) else None
        nn.init.kaiming_normal_(module.weight)
        module.weight.mul_(_gain(follower, place == last) / math.sqrt(2.0))
        if module.bias is not None:
            module.bias.zero_()


def _reset(model: nn.Module) -> None:
    """Have all modules initialise themselves that can, and that are trained."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and _trained(module) and not isinstance(module, _WEIGHTED):
            reset()


def _trained(module: nn.Module) -> bool:
    """Whether it has parameters of its own that are not frozen."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _gain(follower: nn.Module | None, last: bool) -> float:
    if isinstance(follower, nn.LeakyReLU):
        return nn.init.calculate_gain("leaky_relu", follower.negative_slope)
    if follower is not None and type(follower).__name__ in _GAINS:
        return nn.init.calculate_gain(_GAINS[type(follower).__name__])  # pyright: ignore[reportArgumentType]
    return 1.0 if last and follower is None else math.sqrt(2.0)


def lsuv(
    model: nn.Module,
    on_fault: OnFault,
    standardised: Standardised | None = None,
    begins: Callable[[], bool] = lambda: True,
) -> None:
    """Give every linear and convolutional layer outputs of mean 0 and std 1 on the first batch it sees.

    Layer-sequential unit variance (Mishkin & Matas 2015, arXiv 1511.06422), in one extra forward pass just
    before the first in training mode: a layer's output is rescaled on its way, so the next layer already sees
    the new one. What goes wrong in that pass ends it, and is told to `on_fault`. Nothing is done where
    `begins` says by then that the training goes on from elsewhere.

    It begins from Kaiming, as the paper does from orthonormal weights: where the signal has died on the way,
    the spread is that of the biases, and scaling it up brings no signal back. Layers that are to take their
    steps on standardised inputs begin so, too.
    """
    kaiming(model)
    inputs = standardised or Standardised()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training:
            return
        handle.remove()
        try:
            if begins():
                _rescale(module, inputs, args, kwargs)
        except Exception as fault:
            on_fault(fault)

    handle = model.register_forward_pre_hook(before, with_kwargs=True)


def _rescale(model: nn.Module, inputs: Standardised, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the model once, rescaling layer by layer; generators and buffers are left as they were."""
    done: set[nn.Module] = set()

    def after(module: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor | None:
        found = first_floating(output)
        if found is None or found is not output or module in done:
            return None
        done.add(module)
        begun = inputs.saw(module, given, found)
        normal = _normalise(module, begun)
        return begun if normal is None else normal

    layers = [module for module in model.modules() if isinstance(module, _WEIGHTED) and _trained(module)]
    handles = [layer.register_forward_hook(after) for layer in layers]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), _generators_kept(model):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _normalise(layer: nn.Module, output: Tensor) -> Tensor | None:
    """Divide the layer's weights so that this output has std 1, and move its bias so that the mean is 0.

    Where the units differ from each other more than each does from sample to sample, as behind sigmoids, the
    layer is about to say the same whatever it is shown: there each unit is brought to mean 0 and std 1
    (Kraehenbuehl et al. 2016, arXiv 1511.06856).
    """
    assert isinstance(layer, _WEIGHTED)
    units = -1 if isinstance(layer, nn.Linear) else 1
    mean, std = output.mean(), output.std(correction=0)
    if not bool(std.isfinite()) or float(std) == 0.0:
        return None
    of_units = output.movedim(units, 0).flatten(1)
    spreads = of_units.std(1, correction=0)
    common = float(spreads.square().mean().sqrt()) < COMMON * float(std)
    if layer.bias is not None and common and bool((spreads > _FLAT * std).all()):
        mean, std = of_units.mean(1), spreads
    layer.weight.div_(_beside(std, layer.weight, _outputs(layer)))
    if layer.bias is None:
        return output / _beside(std, output, units)
    layer.bias.sub_(mean).div_(std)
    return (output - _beside(mean, output, units)) / _beside(std, output, units)


def _outputs(layer: nn.Module) -> int:
    """The axis of a layer's weights along which its outputs lie."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0  # pyright: ignore[reportPrivateUsage]


def _beside(values: Tensor, other: Tensor, axis: int) -> Tensor:
    """Values, one or one a unit, in the shape in which they meet the other tensor along its axis."""
    if values.dim() == 0:
        return values
    shape = [1] * other.dim()
    shape[axis] = -1
    return values.view(shape)


@contextmanager
def _generators_kept(model: nn.Module) -> Generator[None, None, None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(_devices(model)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _devices(model: nn.Module) -> Sequence[torch.device]:
    def found() -> Iterator[torch.device]:
        for parameter in model.parameters():
            if parameter.is_cuda:
                yield parameter.device

    return list(dict.fromkeys(found()))
