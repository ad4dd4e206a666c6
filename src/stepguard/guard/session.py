"""A guarded training: `Guard`.

Flow: at each optimizer step in come the loss and what the collector measured; out come one decision, carried
out before the weights are touched, and one observation for the subscribers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from stepguard.collect.collector import Collector
from stepguard.collect.losses import scalar_loss
from stepguard.errors import StepguardError, TrainingStopped
from stepguard.guard.acting import Acting
from stepguard.guard.lateness import Lateness
from stepguard.guard.scalars import Scalars
from stepguard.guard.snapshots import Snapshots
from stepguard.guard.stepping import Stepping
from stepguard.guard.telling import Subscriber, Telling
from stepguard.recover.attempt import Attempt
from stepguard.recover.decision import Decision
from stepguard.recover.deferral import Deferral
from stepguard.recover.gate import Gate
from stepguard.recover.link import asked_by
from stepguard.recover.observer import Observer
from stepguard.recover.protocols import Scaler
from stepguard.recover.ranks import Ranks
from stepguard.recover.recovery import Observation
from stepguard.report.diagnosis import Diagnosis
from stepguard.report.faults import Faults
from stepguard.report.session import Reports
from stepguard.rules.alert import Change


class Guard:
    """A guarded training, made by `watch`. A context manager that closes itself."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        scaler: Scaler | None,
        collector: Collector,
        observer: Observer,
        reports: Reports,
        snapshots: Snapshots,
        stepping: Stepping,
        deferral: Deferral,
        ranks: Ranks,
        faults: Faults,
        attempt: Attempt,
    ) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._collector, self._observer, self._reports = collector, observer, reports
        self._snapshots, self._stepping, self._ranks = snapshots, stepping, ranks
        self._faults, self._attempt, self._deferral = faults, attempt, deferral
        self._loss: Tensor | None = None
        self._scalars = Scalars(optimizer, scaler)
        self._telling = Telling(reports, faults)
        self._act = Acting(observer, snapshots, self._telling, ranks=ranks, attempt=attempt, close=self.close)
        self._late = Lateness(observer, snapshots, publish=self._publish, act=self._act, faults=faults)
        self._closed = False
        self._inside = False
        """Of `step`, which has more to do after the optimizer."""
        self._gate = Gate(optimizer, self._skips, self._passed)
        attempt.guards.append(self)

    @property
    def alerts(self) -> list[Change]:
        """The alerts that began to fire in this attempt, oldest first (the last 10,000)."""
        return list(self._telling.alerts)

    @property
    def decisions(self) -> list[Decision]:
        """What was decided in this attempt, oldest first (the last 10,000)."""
        return list(self._telling.decisions)

    @property
    def run_path(self) -> Path | None:
        """Where the run file lies; None if nothing is recorded."""
        return self._reports.run_path

    def step(self, loss: Tensor) -> None:
        """Take the optimizer's step, guarded: in place of `optimizer.step()` or `scaler.step(optimizer)`.

        Raises:
            RestartRequested: a rule ends this attempt; the weights are as before the step.
            TrainingHalted: a rule ends the training; the weights are as before the step.
        """
        if self._closed:
            self._faults.say("step() after close(): the optimizer takes its step, but nobody guards it")
        else:
            self.loss(loss)
        self._inside = True
        try:
            self._take_step()
        finally:
            self._inside = False
        self._passed()

    def _take_step(self) -> None:
        if self._scaler is None:
            self._optimizer.step()
            return
        passed = self._gate.passed
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._gate.passed == passed and not self._closed:
            self._pass(self._observer.left_out)

    def loss(self, loss: Tensor) -> None:
        """Give the loss of the step to come, where the loop calls `optimizer.step()` by itself."""
        try:
            self._loss = scalar_loss(loss)
        except TypeError as fault:
            self._faults.say(f"{fault}; the guard goes on without it")

    def log(self, **metrics: float) -> None:
        """Log numbers by name; rules see `metric.NAME` at the next step.

        The default pack looks at three: `val_loss`, the loss on held-out data; `score`, a score on it that is
        1 at best, the first time before the first step; `reward`, what is paid.
        """
        for name, value in metrics.items():
            try:
                self._scalars.log(name, value)
            except (TypeError, ValueError):
                self._faults.say(
                    f"log({name}=...): expected a number, got {type(value).__name__}; it is left out"
                )
        self._attempt.link.alive()

    def subscribe(self, fn: Subscriber) -> None:
        """Call `fn` with the Observation of each step: frame, changes of alerts, decision.

        Raises:
            StepguardError: it cannot be called.
        """
        if not callable(fn):
            raise StepguardError(f"subscribers: expected functions, got {fn!r}")
        self._telling.subscribers.append(fn)

    def on_notify(self, fn: Callable[[Diagnosis], object]) -> None:
        """Call `fn` with each diagnosis whose rule takes the action `notify`."""
        self._telling.notified.append(fn)

    def state_dict(self) -> dict[str, Any]:
        """Step, windows, alerts, ladders and the remedy in force, to be saved with a checkpoint."""
        self._late.catch_up()
        return self._snapshots.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, of a model with the same layers; its weights are not in it."""
        self._late.forget()
        self._snapshots.load_state_dict(state)

    def keep(self, **parts: Any) -> None:
        """Take more into the snapshots, by name: a second optimizer, averaged weights.

        Each needs `state_dict` and `load_state_dict`, and goes back with the model in a rollback.
        """
        self._snapshots.keeper.parts.kept |= parts

    def keep_data(self, *loaders: Any) -> None:
        """Take data loaders with `state_dict` into the snapshots. In a rollback the data goes on."""
        self._snapshots.keeper.parts.data += loaders

    def snapshot(self) -> Path | None:
        """Write a snapshot now, and return its path; None, and a warning, where that cannot be done.

        Call it between two steps, after the scheduler's. A run may be resumed from it if no alert is firing.
        """
        self._late.catch_up()
        return self._snapshots.write()

    def resume(self) -> int:
        """Go on with the newest run in the folder that was broken off; return the step to go on with.

        Call it before the first step, with everything built as at the beginning. 0 means that there is
        nothing to go on with. The run file goes on as well, and all generators stand where they stood.

        Raises:
            StepguardError: steps were taken already.
        """
        return self._snapshots.resume()

    def close(self, outcome: str = "completed") -> None:
        """Take all hooks off, end the run file, print the summary. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._late.arrive()
        finally:
            self._take_off()
        try:
            self._snapshots.keeper.close(completed=outcome == "completed")
            self._reports.close(outcome, self._scalars.metrics)
        except Exception as fault:
            self._faults(fault)

    def _take_off(self) -> None:
        self._stepping.drop()
        self._observer.end()
        self._attempt.link.close()
        self._ranks.leave()
        self._gate.close()
        self._collector.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("completed" if error is None else f"error: {type(error).__name__}: {error}")

    def _skips(self, loss: Tensor | None) -> bool | Tensor:
        """Observe the step at hand and do what was decided; tell whether it must not happen (see `Gate`)."""
        if loss is not None:
            self.loss(loss)
        self._stepping.drop()  # what a step that was broken off has left
        if not self._gate.within:
            self._stepping.look()
        skipped = self._pass(self._observe)
        if skipped:
            return True
        self._stepping.enter()
        return False if self._observer.bad is None else self._observer.bad

    def _observe(self, loss: Tensor | None, scalars: Mapping[str, float]) -> Observation | None:
        alone = self._stepping.idle and self._gate.free and not (self._gate.within or self._observer.ends)
        observation = self._observer.observe(loss, scalars, late=alone and self._deferral())
        if self._observer.bad is not None:
            self._snapshots.buffers.settle(self._observer.bad)
        return observation

    def _pass(self, observe: Callable[[Tensor | None, Mapping[str, float]], Observation | None]) -> bool:
        step = self._observer.step
        try:
            skipped = self._late.act()
            if self._snapshots.going_back is not None:
                self._observer.pass_by()
            else:
                self._leave(step)
                self._snapshots.before(step)
                observation = observe(self._loss, self._scalars())
                if observation is not None:
                    self._publish(observation)
                    skipped = self._act(observation) or skipped
            if skipped:
                self._observer.stand()
            return skipped
        except TrainingStopped:
            raise
        except Exception as fault:
            self._ranks.part("a fault inside stepguard")
            self._faults(fault)
            return False
        finally:
            self._loss = None
            self._attempt.link.alive()

    def _passed(self) -> None:
        """A step is over, taken by the guard or by the loop itself."""
        self._stepping.leave(self._observer.step)
        if not (self._inside or self._closed):
            self._snapshots.after()

    def _leave(self, step: int) -> None:
        """End the training where a signal asked for it, with a snapshot to go on from."""
        stopping = self._snapshots.stopping(step)
        if stopping is not None:
            self.close(f"stopped: {signal.Signals(asked_by(stopping)).name}")
            raise stopping

    def _publish(self, observation: Observation) -> None:
        self._snapshots.heard()
        self._attempt.link.step(observation.frame.step)
        self._telling(observation)
        if observation.changes:
            self._snapshots.keeper.observed(observation.frame.step, self._observer.firing)
