"""What people put around a training to watch it: each hooks on, and returns the step to take."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from workloads import Training

import stepguard

Take = Callable[[Tensor], object]
Watcher = Callable[[Training], Any]


@contextmanager
def bare(training: Training) -> Iterator[None]:
    """Nobody watches."""
    yield None


def guarded(every: int | str) -> Watcher:
    """stepguard as a user has it: default rules, run file on disk, plain lines into a log."""

    @contextmanager
    def attach(training: Training) -> Iterator[Take]:
        with TemporaryDirectory() as folder:
            options: dict[str, Any] = {"run": folder, "every": every, "console": Console(file=io.StringIO())}
            with stepguard.watch(training.model, training.optimizer, dry_run=True, **options) as guard:
                yield guard.step

    return attach


@contextmanager
def lecture_hooks(training: Training) -> Iterator[None]:
    """The lecture's own: mean, std and histogram of every output, copied to the host, at every step."""
    stats: list[list[Any]] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        acts = output.detach().cpu()
        stats.append([acts.mean().item(), acts.std().item(), acts.abs().histc(40, 0, 10)])

    with _hooked(training, hook):
        yield None


@contextmanager
def naive(training: Training) -> Iterator[None]:
    """A first sketch: `.item()` for four numbers of every output, gradient and weight, at every step."""
    seen: list[float] = []

    def look(tensor: Tensor) -> None:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
        seen.extend((tensor.mean().item(), tensor.std().item(), tensor.abs().max().item()))
        seen.append(torch.isnan(tensor).sum().item())

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        look((output[0] if isinstance(output, tuple) else output).detach())

    def before_step(*_: Any) -> None:
        for parameter in training.model.parameters():
            if parameter.grad is not None:
                look(parameter.grad)
                look(parameter.detach())

    handle = training.optimizer.register_step_pre_hook(before_step)
    with _hooked(training, hook):
        yield None
    handle.remove()


@contextmanager
def _hooked(training: Training, hook: Callable[..., None]) -> Iterator[None]:
    leaves = [m for m in training.model.modules() if not list(m.children()) and not isinstance(m, nn.Flatten)]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def wandb_watch(training: Training) -> Iterator[Take]:
    """`wandb.watch` of gradients and parameters at every step, offline."""
    import wandb  # noqa: PLC0415

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        wandb.watch(training.model, log="all", log_freq=1)

        def take(loss: Tensor) -> None:
            training.optimizer.step()
            run.log({"loss": loss.item()})

        yield take
        run.finish()


@contextmanager
def lightning_spikes(training: Training) -> Iterator[Take]:
    """Lightning's SpikeDetection, which looks at the loss alone."""
    from lightning.fabric import Fabric  # noqa: PLC0415
    from lightning.fabric.utilities.spike import SpikeDetection  # noqa: PLC0415

    detection, fabric, batch = SpikeDetection(), Fabric(accelerator="cpu", devices=1), iter(range(10**9))

    def take(loss: Tensor) -> None:
        training.optimizer.step()
        detection.on_train_batch_end(fabric, loss, None, next(batch))

    yield take


WATCHERS: dict[str, Watcher] = {
    "bare": bare,
    "stepguard, every step": guarded(1),
    "stepguard, each tenth": guarded(10),
    "the lecture's hooks": lecture_hooks,
    "naive .item()": naive,
}
OPTIONAL: dict[str, tuple[str, Watcher]] = {
    "wandb.watch": ("wandb", wandb_watch),
    "Lightning SpikeDetection": ("lightning", lightning_spikes),
}


def available() -> dict[str, Watcher]:
    """The watchers that can run here: the others' packages are used where they are installed."""
    installed = {
        name: watcher for name, (package, watcher) in OPTIONAL.items() if importlib.util.find_spec(package)
    }
    return {**WATCHERS, **installed}
