"""Whether a step may be judged while the next one is under way: no bad one must reach the weights meanwhile.

Flow: in come optimizer and rules; out comes, before each step, whether the device itself leaves the step out
if its loss or a gradient is not finite. Fused optimizers can, as a GradScaler has them do.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.rules.rule import LayerFilter, Rule, Ruleset

DEVICES = ("cuda",)
"""Kinds of devices that work on while the host does."""
_STOPS = ("skip", "rollback", "restart", "halt")
_BAD = ("nonfinite(loss)", "any(grad.nonfinite > 0)")
"""Conditions that say together what the device looks at."""


class Deferral:
    """Tells of one training whether the numbers of its steps may come late.

    They may if rules let no step pass whose loss or gradients are not finite, all is on one device, and the
    optimizer is fused.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, rules: Ruleset, *, alone: bool) -> None:
        """`alone` is a training that no GradScaler, no other rank, no choice of layers and no dry run has a
        part in.
        """
        self._model, self._optimizer = model, optimizer
        self._wanted = alone and {rule.condition.root.text for rule in rules if _skips(rule)}.issuperset(_BAD)
        self._there: bool | None = None
        """Whether model and optimizer are on one such device; looked for at the first step."""

    def __call__(self) -> bool:
        """Whether the step to come may."""
        if not self._wanted:
            return False
        if self._there is None:
            own = {p for group in self._optimizer.param_groups for p in group["params"]}
            watched = own.issubset(self._model.parameters())
            devices = {x.device for x in (*own, *self._model.parameters(), *self._model.buffers())}
            self._there = watched and len(devices) == 1 and devices.pop().type in DEVICES
        return self._there and self._leaves_out()

    def _leaves_out(self) -> bool:
        groups, state = self._optimizer.param_groups, self._optimizer.state
        able = getattr(self._optimizer, "_step_supports_amp_scaling", False)
        known = type(self._optimizer).step.__module__.startswith("torch.optim.")
        if not (able and known and all(group.get("fused") for group in groups)):
            return False
        # A fused SGD that leaves out a first step is left with a momentum that nobody has set.
        return not any(
            group.get("momentum")
            and any(p.grad is not None and _unset(state.get(p)) for p in group["params"])
            for group in groups
        )


def _unset(state: dict[str, Tensor | None] | None) -> bool:
    return state is None or state.get("momentum_buffer") is None


def _skips(rule: Rule) -> bool:
    """Whether the rule lets no step pass at which its condition holds, whichever layers it speaks of."""
    always = rule.hold == 1 and rule.active.start.value == 0 and rule.active.end.value == float("inf")
    stops = all(action.kind in _STOPS for action in rule.ladder)
    return always and stops and rule.ladder[0].kind == "skip" and rule.layers == LayerFilter()
