"""The gate in front of `optimizer.step()`: asks before each step, and lets it happen or not.

Flow: in come the optimizer's steps, with or without a closure; out goes one question a step, whose answer
decides whether weights and optimizer state are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class Gate:
    """Step hooks on one optimizer.

    Args:
        optimizer: the optimizer; `scaler.step(optimizer)` and `optimizer.step()` pass the gate alike.
        skips: asked before each step, with the closure's loss where there is a closure; True keeps the step
            from happening. So does a 1.0 on the device, which a fused optimizer looks at there: nobody
            waits for it. What it raises leaves `optimizer.step()` before the weights are touched.
        passed: called after each step, with weights and gradients as the step leaves them.

    A step that must not happen finds no gradients: every torch optimizer leaves a parameter without one
    alone, so weight, state and step count stay bit for bit. The gradients are given back afterwards. LBFGS
    counts its evaluations all the same, so what it keeps is put back as well.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        skips: Callable[[Tensor | None], bool | Tensor],
        passed: Callable[[], None] = lambda: None,
    ) -> None:
        self._optimizer, self._skips, self._done = optimizer, skips, passed
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._kept: dict[Any, dict[Any, Any]] | None = None
        """The optimizer's state before a step with a closure."""
        self._asked_device = False
        self.passed = 0
        """Steps that came to the gate, without those that a GradScaler leaves out."""
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def within(self) -> bool:
        """Whether the question comes from within a step: the optimizer has the model run by a closure."""
        return self._kept is not None

    @property
    def free(self) -> bool:
        """Whether nobody else, as a GradScaler does, has asked the device to leave this step out."""
        asked = (getattr(self._optimizer, name, None) for name in ("grad_scale", "found_inf"))
        return all(each is None for each in asked)

    def close(self) -> None:
        """Take the hooks off."""
        self._forget_device()
        for handle in self._handles:
            handle.remove()

    def _before(
        self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._forget_device()  # of a step that was broken off
        if self._overflowed():
            return None
        self.passed += 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._ask(None)
            return None
        self._kept = {key: dict(state) for key, state in self._optimizer.state.items()}
        asking = self._asking(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": asking}
        return (*args[:1], asking, *args[2:]), kwargs

    def _overflowed(self) -> bool:
        """Whether a GradScaler has left an overflow to this step; without one the gradients are unscaled.

        It does so with fused optimizers only, which unscale by themselves, and leave the step out.
        """
        scale, overflow = (getattr(self._optimizer, name, None) for name in ("grad_scale", "found_inf"))
        if overflow is not None and bool(overflow):
            return True
        if isinstance(scale, Tensor):
            for parameter in self._parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
            self._optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        return False

    def _asking(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, with the question after its first run: only then are there gradients to judge."""
        asked = False

        def evaluate() -> Any:
            nonlocal asked
            loss = closure()
            if not asked:
                asked = True
                self._ask(loss if isinstance(loss, Tensor) else None)
            return loss

        return evaluate

    def _ask(self, loss: Tensor | None) -> None:
        answer = self._skips(loss)
        if isinstance(answer, Tensor):
            self._asked_device = True
            self._optimizer.found_inf = answer  # pyright: ignore[reportAttributeAccessIssue]
        elif answer:
            self._hide()

    def _forget_device(self) -> None:
        if self._asked_device:
            self._asked_device = False
            del self._optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]

    def _hide(self) -> None:
        for parameter in self._parameters():
            if parameter.grad is not None:
                self._hidden.append((parameter, parameter.grad))
                parameter.grad = None

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for group in self._optimizer.param_groups for parameter in group["params"])

    def _after(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if self._hidden and self._kept is not None:
            self._optimizer.state.clear()
            self._optimizer.state.update(self._kept)
        for parameter, grad in self._hidden:
            parameter.grad = grad
        self._hidden.clear()
        self._kept = None
        self._forget_device()
        self._done()
