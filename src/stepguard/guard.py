"""The session around one model and optimizer: `watch()` and `Guard`.

Flow: at each optimizer step in come the loss and what the collector measured; out come one decision, carried
out before the weights are touched, and one observation for the subscribers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.collect.cadence import Cadence
from stepguard.collect.collector import Collector, scalar_loss
from stepguard.errors import RestartRequested, TrainingHalted, TrainingStopped
from stepguard.recover.attempt import Attempt, current_attempt
from stepguard.recover.decision import Decision
from stepguard.recover.gate import Gate
from stepguard.recover.observer import Observer
from stepguard.recover.protocols import Scaler, Scheduler
from stepguard.recover.recovery import Observation
from stepguard.recover.remedies import apply_attempt, clip_gradients, scale_lr
from stepguard.report.diagnosis import Diagnosis
from stepguard.report.faults import Faults
from stepguard.report.session import Reports
from stepguard.rules.alert import Change
from stepguard.rules.packs import load_rules
from stepguard.signals import METRIC

_KEPT = 10_000
"""Alerts and decisions that a guard remembers; the run file has them all."""
Subscriber = Callable[[Observation], object]


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    rules: str | Path | Sequence[str | Path] = "default",
    total_steps: int | None = None,
    run: str | Path | None = "runs",
    console: Console | Literal["auto"] | None = "auto",
    every: int | Literal["auto"] = "auto",
    layers: str | Sequence[str] | None = None,
    scheduler: Scheduler | None = None,
    scaler: Scaler | None = None,
    subscribers: Iterable[Subscriber] = (),
    dry_run: bool = False,
    on_error: Literal["warn", "raise"] = "warn",
) -> Guard:
    """Guard a training: from now on every `optimizer.step()` is measured and judged.

    Args:
        model: the model; its layers are watched by hooks until `Guard.close`.
        optimizer: the optimizer of that model's parameters.
        rules: a pack's name, a rule file, or several, of which later ones override earlier ones.
        total_steps: planned optimizer steps; rules that count in percent sleep without it.
        run: folder for the run file; None leaves nothing on disk.
        console: "auto" prints to standard error; a rich Console prints there; None is silent.
        every: steps from one full measurement to the next; "auto" is each step for the first 200 and while
            an alert is on, each tenth later. Loss and gradients are checked for NaN at every step.
        layers: globs of names or classes of the layers to watch; None watches all with parameters and all
            activations.
        scheduler: the learning-rate scheduler, so that a changed learning rate lasts.
        scaler: the GradScaler, which `Guard.step` then drives.
        subscribers: called with each step's Observation.
        dry_run: decide and report, but do nothing.
        on_error: what a fault of the guard itself does: "warn" once and go on, or "raise" in tests.

    Raises:
        RuleFileError: a rule file has faults.
        StepguardError: `every` or `layers` cannot be used.
    """
    cadence, ruleset = Cadence(every), load_rules(rules)
    faults = Faults(strict=on_error == "raise")
    collector = Collector(model, optimizer, layers, faults)
    for complaint in collector.complaints():
        faults.say(complaint)
    attempt = current_attempt() or Attempt()
    reports = Reports(
        ruleset, attempt, run=run, console=console, faults=faults, total_steps=total_steps, dry_run=dry_run
    )
    apply_attempt(model, optimizer, scheduler, attempt, faults)
    observer = Observer(
        collector,
        ruleset,
        cadence=cadence,
        attempt=attempt,
        total_steps=total_steps,
        dry_run=dry_run,
        complain=faults.say,
    )
    guard = Guard(
        optimizer,
        scheduler=scheduler,
        scaler=scaler,
        collector=collector,
        observer=observer,
        reports=reports,
        faults=faults,
        attempt=attempt,
    )
    for subscriber in subscribers:
        guard.subscribe(subscriber)
    return guard


class Guard:
    """A guarded training, made by `watch`. A context manager that closes itself."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        scheduler: Scheduler | None,
        scaler: Scaler | None,
        collector: Collector,
        observer: Observer,
        reports: Reports,
        faults: Faults,
        attempt: Attempt,
    ) -> None:
        self._optimizer, self._scheduler, self._scaler = optimizer, scheduler, scaler
        self._collector, self._observer, self._reports = collector, observer, reports
        self._faults, self._attempt = faults, attempt
        self._loss: Tensor | None = None
        self._last_time: float | None = None
        self._metrics: dict[str, float] = {}
        self._subscribers: list[Subscriber] = []
        self._notified: list[Callable[[Diagnosis], object]] = []
        self._alerts: deque[Change] = deque(maxlen=_KEPT)
        self._decisions: deque[Decision] = deque(maxlen=_KEPT)
        self._found: dict[str, Diagnosis] = {}
        """The last diagnosis of each rule."""
        self._closed = False
        self._gate = Gate(optimizer, self._skips)
        attempt.guards.append(self)

    @property
    def alerts(self) -> list[Change]:
        """The alerts that began to fire in this attempt, oldest first (the last 10,000)."""
        return list(self._alerts)

    @property
    def decisions(self) -> list[Decision]:
        """What was decided in this attempt, oldest first (the last 10,000)."""
        return list(self._decisions)

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
        """Log numbers by name; rules see `metric.NAME` at the next step."""
        self._metrics |= {METRIC + name: float(value) for name, value in metrics.items()}

    def subscribe(self, fn: Subscriber) -> None:
        """Call `fn` with the Observation of each step: frame, changes of alerts, decision."""
        self._subscribers.append(fn)

    def on_notify(self, fn: Callable[[Diagnosis], object]) -> None:
        """Call `fn` with each diagnosis whose rule takes the action `notify`."""
        self._notified.append(fn)

    def state_dict(self) -> dict[str, Any]:
        """Step, windows, alerts and ladders, to be saved with a checkpoint."""
        return self._observer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, of a model with the same layers."""
        self._observer.load_state_dict(state)

    def close(self, outcome: str = "completed") -> None:
        """Take all hooks off, end the run file, print the summary. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._gate.close()
        self._collector.close()
        try:
            self._reports.close(outcome, self._metrics)
        except Exception as fault:
            self._faults(fault)

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("completed" if error is None else f"error: {type(error).__name__}: {error}")

    def _skips(self, loss: Tensor | None) -> bool:
        """Observe the step at hand and do what was decided; tell whether the step must not happen."""
        if loss is not None:
            self.loss(loss)
        return self._pass(self._observer.observe)

    def _pass(self, observe: Callable[[Tensor | None, Mapping[str, float]], Observation]) -> bool:
        try:
            observation = observe(self._loss, self._scalars())
            self._publish(observation)
            return self._carry_out(observation)
        except TrainingStopped:
            raise
        except Exception as fault:
            self._faults(fault)
            return False
        finally:
            self._loss = None

    def _scalars(self) -> dict[str, float]:
        scalars, self._metrics = self._metrics, {}
        now = time.perf_counter()
        if self._last_time is not None:
            scalars["step_time"] = now - self._last_time
        self._last_time = now
        scalars["lr"] = float(self._optimizer.param_groups[0]["lr"])
        if self._scaler is not None:
            scalars["loss_scale"] = float(self._scaler.get_scale())
        return scalars

    def _publish(self, observation: Observation) -> None:
        self._alerts.extend(change for change in observation.changes if change.state == "firing")
        if observation.decision is not None:
            self._decisions.append(observation.decision)
        try:
            self._found |= {diagnosis.rule: diagnosis for diagnosis in self._reports(observation)}
        except Exception as fault:  # telling may fail, acting must not
            self._faults(fault)
        self._faults.tell(self._subscribers, observation)

    def _carry_out(self, observation: Observation) -> bool:
        """Do what was decided; True if the step must not happen."""
        decision = observation.decision
        if decision is not None and not decision.dry_run:
            for rule in observation.notified:
                if rule in self._found:
                    self._faults.tell(self._notified, self._found[rule])
            if decision.kind == "skip":
                return True
            self._do(decision)
        if self._attempt.clip is not None:
            clip_gradients(self._optimizer, self._attempt.clip)
        return False

    def _do(self, decision: Decision) -> None:
        if decision.kind == "lower_lr":
            scale_lr(self._optimizer, self._scheduler, float(decision.settings["by"]))
        elif decision.kind in ("rollback", "snapshot"):
            self._faults.say(
                f"the action {decision.kind} is not there yet; rule {decision.rule!r} only warns"
            )
        elif decision.kind in ("restart", "halt"):
            found = self._found.get(decision.rule)
            self._stop(decision, decision.reason if found is None else str(replace(found, decision=decision)))

    def _stop(self, decision: Decision, diagnosis: str) -> None:
        """End the attempt before the weights are touched."""
        self._observer.end()
        self.close(f"{decision.kind}: {decision.rule}")
        if decision.kind == "halt":
            raise TrainingHalted(diagnosis, step=decision.step, rule=decision.rule)
        raise RestartRequested(diagnosis, step=decision.step, rule=decision.rule, remedy=decision.settings)
