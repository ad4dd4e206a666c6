"""`watch()`: takes a training apart into what is measured, judged, told and kept, and makes its guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from stepguard.collect.cadence import Cadence
from stepguard.collect.collector import Collector
from stepguard.guard.session import Guard
from stepguard.guard.snapshots import Snapshots
from stepguard.guard.telling import Subscriber
from stepguard.recover.attempt import Attempt, current_attempt
from stepguard.recover.keeper import Keeper
from stepguard.recover.observer import Observer
from stepguard.recover.pacing import Pacer
from stepguard.recover.parts import Parts
from stepguard.recover.protocols import Scaler, Scheduler
from stepguard.recover.ranks import Ranks, begin_alike, find_ranks
from stepguard.recover.recovery import Observation
from stepguard.recover.remedies import apply_attempt, lr_of, share_of_lr
from stepguard.recover.trained import comes_trained
from stepguard.report.faults import Faults
from stepguard.report.session import Reports
from stepguard.rules.packs import load_rules


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

    A restart may initialise the model anew, which costs what pretrained weights know. It is left out where
    a normalisation of the model has seen training before; for other pretrained models take rules without
    `init`.

    Of a distributed training call it on every rank, after `init_process_group`: the ranks then see the same
    numbers and decide the same, and rank 0 records and prints.

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
    ranks = find_ranks(faults.say)
    if not ranks.main:
        faults.whose = f"rank {ranks.rank}: "
    collector = Collector(model, optimizer, layers, faults)
    complain: Callable[[str], None] = faults.say if ranks.main else _leave_to_main
    for complaint in collector.complaints():
        complain(complaint)
    attempt = current_attempt() or Attempt()
    _spare_trained(model, attempt, complain)
    reports = Reports(
        ruleset,
        attempt,
        run=run if ranks.main else None,
        console=console if ranks.main else None,
        faults=faults,
        total_steps=total_steps,
        dry_run=dry_run,
    )
    keeper = Keeper(
        Parts(model, optimizer, scheduler, scaler),
        ruleset,
        every=1 if every == "auto" else every,
        total_steps=total_steps,
        attempt=attempt.number,
        run_path=_beside(ranks, reports),
        state=lambda: {**observer.state_dict(), "pace": pace.state_dict()},  # both are made below
        ranks=ranks,
        record=reports.event,
        complain=faults.say,
    )
    observer = Observer(
        collector,
        ruleset,
        cadence=cadence,
        attempt=attempt,
        total_steps=total_steps,
        dry_run=dry_run,
        ranks=ranks,
        complain=complain,
        back=keeper.newest,
    )
    snapshots = Snapshots(
        keeper,
        optimizer,
        scheduler,
        observer=observer,
        reports=reports,
        ranks=ranks,
        faults=faults,
        attempt=attempt,
    )
    pace = _Pace(attempt, optimizer, snapshots, total_steps)
    if attempt.resume is None or not snapshots.resume():
        apply_attempt(model, optimizer, scheduler, attempt, faults)
        if attempt.init is not None:
            begin_alike(model, ranks)
    guard = Guard(
        optimizer,
        scaler=scaler,
        collector=collector,
        observer=observer,
        reports=reports,
        snapshots=snapshots,
        ranks=ranks,
        faults=faults,
        attempt=attempt,
    )
    guard.subscribe(pace)
    for subscriber in subscribers:
        guard.subscribe(subscriber)
    attempt.link.begin(attempt.run_path, model.register_forward_pre_hook)
    return guard


class _Pace:
    """Keeps the pace of an attempt whose learning rate is sought, after a resume as before it."""

    def __init__(
        self, attempt: Attempt, optimizer: Optimizer, snapshots: Snapshots, total_steps: int | None
    ) -> None:
        self._attempt, self._optimizer = attempt, optimizer
        self._snapshots, self._total_steps = snapshots, total_steps
        self._pacer: Pacer | None = None

    def __call__(self, seen: Observation) -> None:
        """Correct the learning rate of the step to come."""
        if self._attempt.pace is not None:
            self._pacer = self._pacer or self._begin(self._attempt.pace)
            self._pacer(seen.frame)

    def _begin(self, aim: float) -> Pacer:
        """Make the pacer at the first step: by then it is known what is gone on with."""
        optimizer = self._optimizer
        pacer = Pacer(
            aim,
            lambda: lr_of(optimizer),
            self._snapshots.scale_lr,
            lambda: share_of_lr(optimizer),
            self._total_steps,
        )
        state = self._snapshots.resumed.get("pace")
        if state:
            pacer.load_state_dict(state)
        return pacer

    def state_dict(self) -> dict[str, Any]:
        """How far the search has come; empty where there is none."""
        return {} if self._pacer is None else self._pacer.state_dict()


def _spare_trained(model: nn.Module, attempt: Attempt, complain: Callable[[str], None]) -> None:
    """Leave the weights of a model that comes trained, whatever the remedy says."""
    why = comes_trained(model) if attempt.init is not None and attempt.resume is None else None
    if why is not None:
        complain(f"the model comes trained ({why}): init: {attempt.init} is left out, the rest is changed")
        attempt.init = None


def _leave_to_main(_text: str) -> None:
    """What every rank would say in the same words rank 0 says."""


def _beside(ranks: Ranks, reports: Reports) -> Path | None:
    """Where the snapshots of this rank lie: beside the run file, which rank 0 has."""
    own = reports.run_path
    told = ranks.of_main("run", None if own is None else str(own.absolute()))
    return own if ranks.main or told is None else ranks.beside(Path(told))
