"""The live side of one attempt: at each step boundary from the collector's frame to an observation.

Flow: in come the loss and the scalars that the session knows; out goes what was seen and decided at this
step, at once or, where the device may judge it, at the next one. It also says to the collector which of the
next forward passes to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from torch import Tensor

from stepguard.collect.cadence import Cadence
from stepguard.collect.collector import Collector
from stepguard.collect.coming import Coming
from stepguard.engine import Engine
from stepguard.recover.agreement import Agreement, Words
from stepguard.recover.attempt import Attempt
from stepguard.recover.curve import BEHIND, behind
from stepguard.recover.decision import Decision
from stepguard.recover.prescription import READS
from stepguard.recover.ranks import Ranks
from stepguard.recover.recovery import Observation, Recovery
from stepguard.rules.rule import Ruleset
from stepguard.signals import Frame, Layer

_OF_STEPS = ("update.ratio", "weight.norm")
"""What is not told of weights after a step that was not taken."""


class _Begun(NamedTuple):
    """A step that is judged at the next one."""

    coming: Coming
    scalars: Mapping[str, float]
    stood: bool


class Observer:
    """Counts the steps, from 0, and observes each.

    Args:
        collector: measures the model.
        rules: the rules of the run.
        cadence: at which steps everything is measured.
        attempt: where the ladders begin.
        total_steps: planned length of the run, if known.
        dry_run: whether decisions are only reported.
        ranks: the other ranks of the training, which see the same frames.
        complain: told of what is wrong with the rules, as a sentence.
        back: the step of the snapshot that a rollback would go back to.
    """

    def __init__(
        self,
        collector: Collector,
        rules: Ruleset,
        *,
        cadence: Cadence,
        attempt: Attempt,
        total_steps: int | None,
        dry_run: bool,
        ranks: Ranks,
        complain: Callable[[str], None],
        back: Callable[[int], int | None],
    ) -> None:
        self._collector, self._rules, self._cadence = collector, rules, cadence
        self._attempt, self._total_steps, self._dry_run = attempt, total_steps, dry_run
        self._ranks, self._complain, self._back = ranks, complain, back
        self._agreement: Agreement | None = None
        self.words = Words()
        """What this rank tells the others with the next frame, and after it what they have told."""
        self._order = len(attempt.guards)
        self._recovery: Recovery | None = None
        self._restored: Mapping[str, Any] | None = None
        self._step, self._sampled = 0, True
        self._stood = False
        """The last step was not taken: the weights tell of no update, nor that they stand still."""
        self._begun: _Begun | None = None
        self.at_once = True
        """The step that was judged last is the one at hand, and not the one before it."""
        self.left_out_there = False
        """The device has left out the step that was judged last."""
        self.surpassed: Decision | None = None
        """What ends the attempt at this step because another one did better; no rule has asked for it."""

    @property
    def step(self) -> int:
        """The step to come."""
        return self._step

    @property
    def boundary(self) -> int:
        """The step before whose update the weights are, while it is acted upon what was judged."""
        return self._step - self.at_once

    @property
    def ends(self) -> bool:
        """Whether the step to come is the last one that was planned."""
        return self._total_steps is not None and self._step + 1 >= self._total_steps

    @property
    def measures(self) -> bool:
        """Whether all is measured of the step to come."""
        return self._sampled

    @property
    def firing(self) -> frozenset[str]:
        """The rules whose alert is firing."""
        return frozenset[str]() if self._recovery is None else self._recovery.engine.firing()

    @property
    def bad(self) -> Tensor | None:
        """1.0 on the device if the step at hand must be left out there; None if it was judged already."""
        return None if self._begun is None else self._begun.coming.bad

    def observe(
        self, loss: Tensor | None, scalars: Mapping[str, float], *, late: bool = False
    ) -> Observation | None:
        """Observe a step that is about to be taken; with `late` begin to, and give nothing yet."""
        step = self._step
        self._step += 1
        if self._sampled:
            self._collector.remember(step)
        stood, self._stood = self._stood, False
        if late:
            coming = self._collector.begin(step, loss, sampled=self._sampled)
            self._begun = _Begun(coming, scalars, stood)
            self._look_ahead(step)
            return None
        frame = self._collector.frame(step, loss, sampled=self._sampled)
        return self._judge(frame, scalars, stood=stood)

    def late(self) -> Observation | None:
        """Observe the step that was begun, whose numbers are there by now; None if none was."""
        begun, self._begun = self._begun, None
        if begun is None:
            return None
        frame, self.left_out_there = begun.coming.arrive()
        observation = self._judge(frame, begun.scalars, stood=begun.stood, late=True)
        if self.left_out_there:
            self.stand()
        return observation

    def stand(self) -> None:
        """The step at hand is not taken."""
        self._stood = True
        self._collector.weights_moved()

    def pass_by(self) -> None:
        """Count a step that is neither observed nor taken: its weights are given up."""
        self._collector.forget()
        self._step += 1
        self._look_ahead(self._step - 1)

    def left_out(self, loss: Tensor | None, scalars: Mapping[str, float]) -> Observation:
        """Observe a step that the GradScaler left out: an overflow, which is its daily business."""
        frame = self._collector.frame_of_loss(self._step, loss)
        self._step += 1
        return self._judge(frame, scalars, stood=False)

    def _judge(
        self, frame: Frame, scalars: Mapping[str, float], *, stood: bool, late: bool = False
    ) -> Observation:
        self.at_once = not late
        self.left_out_there = self.left_out_there and late
        for name in _OF_STEPS if stood else ():
            frame.vectors.pop(name, None)
        frame.scalars |= scalars
        recovery = self._recovery = self._recovery or self._begin()
        observation = recovery.observe(self._agreed(frame))
        for rule, reason in recovery.engine.take_failures():
            self._complain(f"rule {rule!r} failed and is left out from now on: {reason}")
        decision = observation.decision
        done = None if decision is None or decision.dry_run else decision.kind
        self.surpassed = self._compared(observation.frame, left_out=done == "skip")
        if not late:
            self._look_ahead(frame.step)
        return observation

    def _look_ahead(self, step: int) -> None:
        """Say whether to measure the forward passes after this step."""
        sampled, quiet = self._sampled, self._recovery is None or self._recovery.engine.quiet
        self._sampled = self._collector.active = self._cadence.measures(self._step, quiet=quiet)
        if self._sampled and not sampled:
            self._collector.remember(step)

    def _compared(self, frame: Frame, *, left_out: bool) -> Decision | None:
        """An end to the attempt, where it does worse than the best one before it has done."""
        attempt, step = self._attempt, frame.step
        if self._order:
            return None
        if left_out:
            attempt.curve.leave_out(step)
        else:
            attempt.curve.see(step, frame.scalars.get("loss"))
        if attempt.best is None or not behind(attempt.curve, attempt.best, step):
            return None
        reason = "the loss is above that of the best attempt at this step: that one is kept"
        return Decision(step, "restart", {}, BEHIND, None, 0, 1, 1, reason)

    def _agreed(self, frame: Frame) -> Frame:
        """The frame of all ranks; the same where there are no others."""
        if self._agreement is None:
            return frame
        frame, self.words = self._agreement.frame(frame, self.words)
        for name, ranks in self._agreement.only.items():
            self._complain(
                f"{name} is not finite on rank {ranks[0]} of {self._ranks.count} (step {frame.step})"
            )
        return frame

    def _begin(self) -> Recovery:
        """Make the engine, once the layers are known."""
        layers = self._collector.layers
        if self._ranks.count > 1:
            self._agreement = Agreement(self._ranks, layers, self._rules.signals | READS)
            layers = self._agreement.layers
        engine = Engine(self._rules, layers, self._total_steps)
        for rule in engine.sleeping():
            self._complain(
                f"rule {rule.name!r} sleeps: it counts in percent, give watch() total_steps to wake it"
            )
        recovery = Recovery(engine, self._attempt, dry_run=self._dry_run, back=self._back)
        recovery.standings = self._attempt.standings_of(self._order)
        if self._restored is not None:
            self._restore(recovery, self._restored)
        return recovery

    def _restore(self, recovery: Recovery, state: Mapping[str, Any]) -> None:
        """Take up windows, alerts and ladders, unless they are of other layers."""
        pairs = enumerate(zip_longest(_plain(recovery.engine.layers), state["layers"]))
        differing = next(((place, *pair) for place, pair in pairs if pair[0] != pair[1]), None)
        if differing is None:
            recovery.load_state_dict(state["recovery"])
            return
        place, here, there = differing
        self._complain(
            f"the state that was loaded is of another model (layer {place}: expected {here}, got {there});"
            " windows, alerts and ladders begin anew"
        )

    def end(self) -> None:
        """Leave to the attempt where the ladders stand, and what is to be changed if it did badly."""
        if self._recovery is not None:
            self._attempt.leave(self._order, self._recovery.standings)
            if not self._order:
                self._attempt.doubt = self._recovery.doubt

    def state_dict(self) -> dict[str, Any]:
        """Step, layers, windows, alerts and ladders, in plain containers and numpy arrays."""
        if self._recovery is None:
            return dict(self._restored or {"step": self._step})
        layers, recovery = _plain(self._recovery.engine.layers), self._recovery.state_dict()
        return {
            "step": self._step,
            "sampled": self._sampled,
            "stood": self._stood,
            "layers": layers,
            "recovery": recovery,
            "collector": self._collector.state_dict(),
            "curve": self._attempt.curve.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, of a model with the same layers."""
        self._step = int(state["step"])
        self._sampled = self._collector.active = bool(state.get("sampled", True))
        self._stood = bool(state.get("stood", False))
        self._restored = state if "recovery" in state else None
        if "curve" in state and not self._order:
            self._attempt.curve.load_state_dict(state["curve"])
        if "collector" in state:
            self._collector.load_state_dict(state["collector"])
        if self._recovery is not None and self._restored is not None:
            self._restore(self._recovery, self._restored)


def _plain(layers: Iterable[Layer]) -> list[list[str]]:
    return [list(layer) for layer in layers]
