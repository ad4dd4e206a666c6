"""`watch()`: takes a training apart into what is measured, judged, told and kept, and makes its guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from stepguard.collect.cadence import Cadence
from stepguard.collect.collector import Collector
from stepguard.collect.pair import complaints
from stepguard.guard.arguments import check_arguments
from stepguard.guard.session import Guard
from stepguard.guard.snapshots import Snapshots
from stepguard.guard.stepping import Stepping
from stepguard.guard.telling import Subscriber
from stepguard.recover.attempt import Attempt, current_attempt
from stepguard.recover.deferral import Deferral
from stepguard.recover.keeper import Keeper
from stepguard.recover.observer import Observer
from stepguard.recover.parts import Parts
from stepguard.recover.protocols import Scaler, Scheduler
from stepguard.recover.ranks import Ranks, begin_alike, find_ranks
from stepguard.recover.remedies import apply_attempt
from stepguard.recover.trained import comes_trained, normalises
from stepguard.report.faults import Faults
from stepguard.report.session import Reports
from stepguard.rules.packs import load_rules
from stepguard.rules.rule import Ruleset


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
        console: "auto" prints to standard error; a rich Console prints there; None is silent. Where several
            guards are open, the class of the model stands in each line.
        every: steps from one full measurement to the next; "auto" is each step for the first 200 and while
            an alert is on, each tenth later. Loss and gradients are checked for NaN at every step. Steps of
            fused optimizers on a GPU are judged one step later; the device leaves out bad ones itself.
        layers: globs of names or classes of the layers to watch; None watches all with parameters and all
            activations.
        scheduler: the learning-rate scheduler, so that a changed learning rate lasts.
        scaler: the GradScaler, which `Guard.step` then drives.
        subscribers: called with each step's Observation.
        dry_run: decide and report, but do nothing.
        on_error: what a fault of the guard itself does: "warn" once and go on, or "raise" in tests.

    Raises:
        RuleFileError: a rule file has faults.
        StepguardError: an argument cannot be used.
    """
    check_arguments(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    check_arguments(rules=rules, total_steps=total_steps, layers=layers, dry_run=dry_run, on_error=on_error)
    check_arguments(run=run, console=console, subscribers=subscribers)
    cadence, ruleset = Cadence(every), load_rules(rules)
    faults = Faults(strict=on_error == "raise")
    ranks = find_ranks(faults.say)
    shared = _Shared(
        model, optimizer, scheduler, scaler, ruleset, cadence, total_steps, dry_run, faults, ranks
    )
    guard = shared.guard(layers, run, console)
    for subscriber in subscribers:
        guard.subscribe(subscriber)
    return guard


@dataclass
class _Shared:
    """The training, and what every part of its guard is made with; makes the parts one by one."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None
    scaler: Scaler | None
    rules: Ruleset
    cadence: Cadence
    total_steps: int | None
    dry_run: bool
    faults: Faults
    ranks: Ranks
    attempt: Attempt = field(default_factory=lambda: current_attempt() or Attempt())

    def __post_init__(self) -> None:
        if not self.ranks.main:
            self.faults.whose = f"rank {self.ranks.rank}: "

    def complain(self, text: str) -> None:
        """Say what every rank would say in the same words: rank 0 does."""
        if self.ranks.main:
            self.faults.say(text)

    def guard(
        self,
        layers: str | Sequence[str] | None,
        run: str | Path | None,
        console: Console | Literal["auto"] | None,
    ) -> Guard:
        """Make everything, and the training what the attempt asks for."""
        attempt, collector = self.attempt, self.collector(layers)
        attempt.normalised = normalises(self.model)
        _spare_trained(self.model, attempt, self.complain)
        reports = self.reports(run, console)

        def state() -> dict[str, Any]:
            return snapshots.state_dict()  # made below

        keeper = self.keeper(reports, state)
        observer = self.observer(collector, keeper)
        stepping = self.stepping(keeper)
        snapshots = self.snapshots(keeper, observer, stepping, reports)
        self.begin(snapshots, observer, stepping)
        guard = Guard(
            self.optimizer,
            scaler=self.scaler,
            collector=collector,
            observer=observer,
            reports=reports,
            snapshots=snapshots,
            stepping=stepping,
            deferral=self.deferral(whole=layers is None),
            ranks=self.ranks,
            faults=self.faults,
            attempt=attempt,
        )
        attempt.link.begin(attempt.run_path, self.model.register_forward_pre_hook)
        return guard

    def collector(self, layers: str | Sequence[str] | None) -> Collector:
        collector = Collector(self.model, self.optimizer, layers, self.faults, self.rules.signals)
        for complaint in complaints(self.model, self.optimizer):
            self.complain(complaint)
        return collector

    def reports(self, run: str | Path | None, console: Console | Literal["auto"] | None) -> Reports:
        main = self.ranks.main
        return Reports(
            self.rules,
            self.attempt,
            model=type(self.model).__name__,
            run=run if main else None,
            console=console if main else None,
            faults=self.faults,
            total_steps=self.total_steps,
            dry_run=self.dry_run,
        )

    def keeper(self, reports: Reports, state: Callable[[], dict[str, Any]]) -> Keeper:
        """`state` gives what a snapshot holds of the guard."""
        return Keeper(
            Parts(self.model, self.optimizer, self.scheduler, self.scaler),
            self.rules,
            every=self.cadence.closest,
            total_steps=self.total_steps,
            attempt=self.attempt.number,
            run_path=_beside(self.ranks, reports),
            state=state,
            ranks=self.ranks,
            record=reports.event,
            complain=self.faults.say,
        )

    def observer(self, collector: Collector, keeper: Keeper) -> Observer:
        return Observer(
            collector,
            self.rules,
            cadence=self.cadence,
            attempt=self.attempt,
            total_steps=self.total_steps,
            dry_run=self.dry_run,
            ranks=self.ranks,
            complain=self.complain,
            back=keeper.newest,
        )

    def deferral(self, *, whole: bool) -> Deferral:
        alone = whole and self.scaler is None and self.ranks.count == 1 and not self.dry_run
        return Deferral(self.model, self.optimizer, self.rules, alone=alone)

    def stepping(self, keeper: Keeper) -> Stepping:
        return Stepping(
            self.model,
            self.optimizer,
            attempt=self.attempt,
            total_steps=self.total_steps,
            lr_scale=lambda: keeper.lr_scale,
            faults=self.faults,
        )

    def snapshots(
        self, keeper: Keeper, observer: Observer, stepping: Stepping, reports: Reports
    ) -> Snapshots:
        return Snapshots(
            keeper,
            self.optimizer,
            self.scheduler,
            observer=observer,
            stepping=stepping,
            reports=reports,
            ranks=self.ranks,
            faults=self.faults,
            attempt=self.attempt,
        )

    def begin(self, snapshots: Snapshots, observer: Observer, stepping: Stepping) -> None:
        """Make the training what the attempt asks for: gone on with, or with its remedy."""
        attempt, inputs = self.attempt, stepping.standardised
        if attempt.resume is not None and snapshots.resume():
            return
        apply_attempt(
            self.model,
            self.optimizer,
            self.scheduler,
            attempt,
            self.faults,
            standardised=inputs,
            begins=lambda: observer.step == 0,
        )
        if attempt.init is not None:
            begin_alike(self.model, inputs.tensors, self.ranks)


def _spare_trained(model: nn.Module, attempt: Attempt, complain: Callable[[str], None]) -> None:
    """Leave the weights of a model that comes trained, whatever the remedy says."""
    why = comes_trained(model) if attempt.init is not None and attempt.resume is None else None
    if why is not None:
        complain(f"the model comes trained ({why}): init: {attempt.init} is left out, the rest is changed")
        attempt.init = None


def _beside(ranks: Ranks, reports: Reports) -> Path | None:
    """Where the snapshots of this rank lie: beside the run file, which rank 0 has."""
    own = reports.run_path
    told = ranks.of_main("run", None if own is None else str(own.absolute()))
    return own if ranks.main or told is None else ranks.beside(Path(told))
