"""Guards a script that never heard of stepguard: the first optimizer that steps, and the model it moves.

Flow: in come calls of modules, backward passes and the first optimizer step of a process; out comes a guard
with the shipped rules, made within that step. What is patched is `Tensor.backward` and `GradScaler.scale`, to
know the loss; both are put back when the guard is closed.

Limits: one optimizer is guarded, the first that steps; a script that calls `watch` before is left alone. The
loss is that of the last backward pass of a step, if it is a single number. The first step is judged by its
gradients only, and left out where a remedy or a snapshot has changed the weights under them. After a crash
the weights are those of the snapshot, but the script counts its epochs from the beginning. Schedulers are not
known: a changed learning rate lasts only where the scheduler multiplies what it finds.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from stepguard.guard import Guard


class Automatic:
    """Waits for the first optimizer step of this process, and guards from there on."""

    def __init__(self) -> None:
        self._called: dict[int, weakref.ref[nn.Module]] = {}
        """Modules in the order of their first call: the model before its layers."""
        self._guard: Guard | None = None
        self._done = False
        self._loss: Tensor | None = None
        self._unscaled: tuple[int, Tensor] | None = None
        """The id of a scaled loss, and the loss."""
        self._waiting = [
            register_module_forward_pre_hook(self._call),
            register_optimizer_step_pre_hook(self._step),
        ]
        self._originals = Tensor.backward, torch.amp.GradScaler.scale
        self._patch()

    def _patch(self) -> None:
        backward, scale = self._originals

        def backward_told(loss: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._tell(loss)
            return backward(loss, *args, **kwargs)

        def scale_told(scaler: Any, outputs: Any) -> Any:
            scaled = scale(scaler, outputs)
            if isinstance(outputs, Tensor):
                self._unscaled = id(scaled), outputs.detach()
            return scaled

        _put(backward_told, scale_told)

    def _tell(self, loss: Tensor) -> None:
        """A backward pass begins: the loss, before a GradScaler has scaled it."""
        if loss.numel() != 1:
            return
        scaled = self._unscaled
        self._loss = scaled[1] if scaled is not None and scaled[0] == id(loss) else loss.detach()
        if self._guard is not None:
            self._guard.loss(self._loss)

    def _call(self, module: nn.Module, _args: Any) -> None:
        """A module is called. Once the guard stands the hooks go: within a step they could not."""
        if self._done:
            while self._waiting:
                self._waiting.pop().remove()
        elif id(module) not in self._called:
            self._called[id(module)] = weakref.ref(module)

    def _step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._done:
            return
        model = self._model_of(optimizer)
        if model is None:
            return
        self._done = True
        self._called.clear()
        try:
            self._watch(model, optimizer)
        except Exception as fault:
            sys.stderr.write(f"stepguard run --auto: no guard ({type(fault).__name__}: {fault})\n")
            self._close()

    def _model_of(self, optimizer: Optimizer) -> nn.Module | None:
        """The module that was called first of those that own most of the optimizer's parameters."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        called = [module for module in (ref() for ref in self._called.values()) if module is not None]
        shares = [len(own & {id(parameter) for parameter in module.parameters()}) for module in called]
        most = max(shares, default=0)
        return called[shares.index(most)] if most else None

    def _watch(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Make the guard, while the first step is on its way."""
        from stepguard.guard import watch  # noqa: PLC0415
        from stepguard.recover.attempt import current_attempt  # noqa: PLC0415

        attempt = current_attempt()
        if attempt is not None and attempt.guards:
            self._close()
            return
        self._guard = watch(model, optimizer)
        atexit.register(self._close)
        if self._loss is not None:
            self._guard.loss(self._loss)
        if attempt is not None and (attempt.number > 1 or attempt.resume is not None):
            optimizer.zero_grad(set_to_none=True)

    def _close(self) -> None:
        """Put everything back, and close the guard with what the script ended in."""
        _put(*self._originals)
        if self._guard is not None:
            error = getattr(sys, "last_value", None)
            self._guard.close("completed" if error is None else f"error: {type(error).__name__}: {error}")


def _put(backward: Callable[..., Any], scale: Callable[..., Any]) -> None:
    setattr(Tensor, "backward", backward)  # noqa: B010 - their types forbid a plain assignment
    setattr(torch.amp.GradScaler, "scale", scale)  # noqa: B010
