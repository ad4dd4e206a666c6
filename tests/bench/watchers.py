"""What people put around a training to watch it: each hooks on, and returns the step to take."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from workloads import Training

import stepguard
from stepguard.collect.cadence import LATER, YOUNG
from stepguard.collect.passes import HUGE
from stepguard.collect.sampling import SAMPLE, memory_of

Take = Callable[[Tensor], object]


class Watcher(NamedTuple):
    """A way to watch a training."""

    attach: Callable[[Training], AbstractContextManager[Take | None]]
    """Watches a training as long as the context lasts."""
    cycle: int = 1
    """Steps after which what it does begins anew; only whole cycles can be compared."""
    package: str | None = None
    """What must be installed for it."""


@contextmanager
def bare(training: Training) -> Generator[None]:
    """Nobody watches."""
    yield None


def guarded(every: int | Literal["auto"]) -> Watcher:
    """stepguard as a user has it: default rules, run file on disk, plain lines into a log.

    "auto" is past its youth, in which each step is measured.
    """

    @contextmanager
    def attach(training: Training) -> Generator[Take]:
        with TemporaryDirectory() as folder:
            guard = stepguard.watch(
                training.model,
                training.optimizer,
                run=folder,
                every=every,
                console=Console(file=io.StringIO()),
                dry_run=True,
                on_error="raise",
            )
            if every == "auto":
                guard.load_state_dict({"step": YOUNG})
            with guard:
                yield guard.step

    return Watcher(attach, LATER if every == "auto" else every)


@contextmanager
def lecture_hooks(training: Training) -> Generator[None]:
    """The lecture's own: mean, std and histogram of every output, copied to the host, at every step."""
    stats: list[list[Any]] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        acts = output.detach().cpu()
        stats.append([acts.mean().item(), acts.std().item(), acts.abs().histc(40, 0, 10)])

    with _hooked(training, hook):
        yield None


@contextmanager
def naive(training: Training) -> Generator[None]:
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


def reading(*, outputs: bool) -> Watcher:
    """The plainest way to surely see what is not finite: gradients, and outputs, added up, and no more."""

    @contextmanager
    def attach(training: Training) -> Generator[None]:
        sums: list[Tensor] = []

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            sums.append((output[0] if isinstance(output, tuple) else output).detach().sum())

        def before_step(*_: Any) -> None:
            grads = [p.grad for p in training.model.parameters() if p.grad is not None]
            sums.extend((grad.coalesce().values() if grad.is_sparse else grad).sum() for grad in grads)
            assert math.isfinite(float(torch.stack(sums).sum()))
            sums.clear()

        handle = training.optimizer.register_step_pre_hook(before_step)
        with _hooked(training, hook) if outputs else nullcontext():
            yield None
        handle.remove()

    return Watcher(attach)


@contextmanager
def samples_alone(training: Training) -> Generator[None]:
    """What statistics of every layer have to read, in as few calls as torch has, and nothing made of it.

    Of outputs the extremes, which are exact, and 4,096 elements; of gradients and weights the norm and the
    extremes, and as many elements; of huge weights a part. All signals at every step cost at least as much.
    """
    places: dict[int, Tensor] = {}
    rooms: dict[object, tuple[Tensor, ...]] = {}

    def look(key: object, tensor: Tensor, *, norm: bool) -> None:
        flat, numel = memory_of(tensor.detach()), tensor.numel()
        if numel not in places:
            places[numel] = torch.linspace(0, numel - 1, min(SAMPLE, numel)).long()
        if key not in rooms:
            rooms[key] = (*torch.zeros(3), torch.empty(len(places[numel])))
        low, high, square, sample = rooms[key]
        torch.aminmax(flat, out=(low, high))
        torch.index_select(flat, 0, places[numel], out=sample)
        if norm:
            torch.dot(flat, flat, out=square)

    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        look(module, output[0] if isinstance(output, tuple) else output, norm=False)

    def before_step(*_: Any) -> None:
        for parameter in training.model.parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                look(("grad", id(parameter)), grad.coalesce().values() if grad.is_sparse else grad, norm=True)
                look(("weight", id(parameter)), memory_of(parameter)[:HUGE], norm=True)

    handle = training.optimizer.register_step_pre_hook(before_step)
    with _hooked(training, hook):
        yield None
    handle.remove()


@contextmanager
def _hooked(training: Training, hook: Callable[..., None]) -> Generator[None]:
    leaves = [m for m in training.model.modules() if not list(m.children()) and not isinstance(m, nn.Flatten)]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def wandb_watch(training: Training) -> Generator[Take]:
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
def lightning_spikes(training: Training) -> Generator[Take]:
    """Lightning's SpikeDetection, which looks at the loss alone."""
    from lightning.fabric import Fabric  # noqa: PLC0415
    from lightning.fabric.utilities.spike import SpikeDetection  # noqa: PLC0415

    detection, fabric, batch = SpikeDetection(), Fabric(accelerator="cpu", devices=1), iter(range(10**9))

    def take(loss: Tensor) -> None:
        training.optimizer.step()
        detection.on_train_batch_end(fabric, loss, None, next(batch))

    yield take


@contextmanager
def torchmortem_autopsy(training: Training) -> Generator[Take]:
    """torchmortem's Autopsy at its default sampling, which it calls balanced."""
    from torchmortem import Autopsy  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    autopsy = Autopsy(training.model, training.optimizer)
    autopsy.attach()

    def take(loss: Tensor) -> None:
        training.optimizer.step()
        autopsy.step(loss=loss.item())

    yield take
    autopsy.detach()


WATCHERS: dict[str, Watcher] = {
    "nobody": Watcher(bare),
    "stepguard, every step": guarded(1),
    "stepguard, auto": guarded("auto"),
    "stepguard, each tenth": guarded(10),
    "every gradient read once": reading(outputs=False),
    "gradients and outputs read once": reading(outputs=True),
    "samples and extremes alone": Watcher(samples_alone),
    "the lecture's hooks": Watcher(lecture_hooks),
    "naive .item()": Watcher(naive),
    "torchmortem": Watcher(torchmortem_autopsy, 50, "torchmortem"),
    "wandb.watch": Watcher(wandb_watch, 1, "wandb"),
    "Lightning SpikeDetection": Watcher(lightning_spikes, 1, "lightning"),
}


def available() -> dict[str, Watcher]:
    """The watchers that can run here: the others' packages are used where they are installed."""
    return {
        name: watcher
        for name, watcher in WATCHERS.items()
        if watcher.package is None or importlib.util.find_spec(watcher.package)
    }
