"""What a remedy does around each step that is taken: it clips, standardises inputs, holds the pace."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stepguard.recover.attempt import Attempt
from stepguard.recover.pacing import annealed
from stepguard.recover.remedies import clip_gradients
from stepguard.recover.standardised import Standardised
from stepguard.recover.trust import TrustRatios
from stepguard.report.faults import Faults


class Stepping:
    """Called before a step is judged, before it is taken and after it.

    A fault of its own is reported, and the step is taken as it would have been without it.

    Args:
        attempt: its `clip` and `pace` are read at each step.
        total_steps: planned length of the training, if known.
        lr_scale: tells what the guard has made of the learning rate, as a factor.
        faults: told of what goes wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        attempt: Attempt,
        total_steps: int | None,
        lr_scale: Callable[[], float],
        faults: Faults,
    ) -> None:
        self._model, self._optimizer, self._attempt = model, optimizer, attempt
        self._total_steps, self._lr_scale, self._faults = total_steps, lr_scale, faults
        self.standardised = Standardised()
        self._trust = TrustRatios(model, optimizer)

    @property
    def idle(self) -> bool:
        """Whether no remedy is in force: it is asked at every step of every training."""
        return self._attempt.clip is None and self._attempt.pace is None and self.standardised.idle

    def look(self) -> None:
        """Give the weights the gradients by which the step will be judged and taken.

        Left out of a step in which the optimizer has the model run: it runs on the inputs as they are.
        """
        if self.idle:
            return
        with self._caught(self.standardised.leave):
            self.standardised.look()

    def enter(self) -> None:
        """The step is about to be taken."""
        if self.idle:
            return
        with self._caught(self.standardised.leave):
            self.standardised.enter()
        if self._attempt.clip is not None:
            with self._caught():
                clip_gradients(self._optimizer, self._attempt.clip)
        if self._attempt.pace is not None:
            with self._caught(self._trust.drop):
                self._trust.enter()

    def leave(self, step: int) -> None:
        """A step is over, taken or left out; `step` is the one to come."""
        if self.idle:
            return
        with self._caught(self._trust.drop):
            if self._attempt.pace is not None:
                part = annealed(step, self._total_steps) * self._lr_scale()
                self._trust.leave(part * self._attempt.pace)
        with self._caught():
            self.standardised.leave()

    def drop(self) -> None:
        """Leave a step that was broken off."""
        if self.idle:
            return
        with self._caught():
            self._trust.drop()
            self.standardised.leave()

    @contextmanager
    def _caught(self, undo: Callable[[], object] = lambda: None) -> Generator[None, None, None]:
        try:
            yield
        except Exception as fault:
            undo()
            self._faults(fault)

    def state_dict(self) -> dict[str, Any]:
        """The remedy that is in force, in plain containers and tensors."""
        remedy = {"clip": self._attempt.clip, "pace": self._attempt.pace}
        return remedy | {"inputs": self.standardised.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave of the same model."""
        self.drop()
        self._attempt.clip, self._attempt.pace = state["clip"], state["pace"]
        self.standardised.go_on(self._model, state["inputs"])
