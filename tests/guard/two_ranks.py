"""Trainings in two processes, rank by rank in the hands of one script: `two_ranks.py FOLDER SCENARIO ...`.

Prints one JSON object: for each scenario what each rank has seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import stepguard
from stepguard.errors import TrainingStopped
from stepguard.recover import certifying, keeper, ranks
from stepguard.recover.attempt import CURRENT, Attempt
from stepguard.recover.supervised_link import SignalLink

RANKS = 2
STEPS = 60
Factor = Callable[[int, int], float]


def plain(rank: int, step: int) -> float:
    """No fault."""
    return 1.0


class Training:
    """A small training of all ranks, each with batches and dropout of its own."""

    def __init__(self, rank: int, *, wrapped: bool = True) -> None:
        self.rank = rank
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.model = DistributedDataParallel(net) if wrapped else net
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        torch.manual_seed(100 + rank)

    def loss(self, step: int) -> Tensor:
        """The loss of this rank's batch of a step."""
        generator = torch.Generator().manual_seed(RANKS * step + self.rank)
        x = torch.randn(16, 8, generator=generator)
        return F.cross_entropy(self.model(x), x[:, :3].argmax(1))

    def run(self, guard: Any, factor: Factor, steps: int = STEPS, first: int = 0) -> None:
        """Take the steps that are left; `factor` is that on the loss of a rank at a step."""
        for step in range(first, steps):
            loss = self.loss(step) * factor(self.rank, step)
            self.optimizer.zero_grad()
            loss.backward()
            guard.step(loss) if guard is not None else self.optimizer.step()

    def digest(self) -> str:
        """Weights and optimizer state, bit for bit, generator not included."""
        digest = hashlib.sha256()
        states = self.model.state_dict(), *self.optimizer.state_dict()["state"].values()
        for state in states:
            for value in state.values():
                digest.update(value.numpy().tobytes())
        return digest.hexdigest()


def watch(training: Training, folder: Path, rule: str, **options: Any) -> stepguard.Guard:
    """Guard it by one rule."""
    file = folder / f"rules-{training.rank}.yaml"
    file.write_text(f"version: 1\nrules:\n  - {{name: r, {rule}}}\n")
    settings: dict[str, Any] = {"rules": file, "run": folder / "runs", "console": None, **options}
    return stepguard.watch(training.model, training.optimizer, **settings)


def told(training: Training, guard: stepguard.Guard, **more: Any) -> dict[str, Any]:
    """What a rank has seen."""
    decided = [(each.step, each.kind, each.to) for each in guard.decisions]
    finite = all(bool(value.isfinite().all()) for value in training.model.state_dict().values())
    return {"decided": decided, "digest": training.digest(), "finite": finite, **more}


def ends(training: Training, guard: stepguard.Guard, factor: Factor, first: int = 0) -> str | None:
    """Train to the end; what ended it before."""
    try:
        training.run(guard, factor, first=first)
    except (TrainingStopped, SystemExit, KeyboardInterrupt) as error:
        return f"{type(error).__name__} before step {guard._observer.step}"
    finally:
        guard.close()
    return None


def large(rank: int, step: int) -> float:
    """The loss of rank 1 alone is large at one step."""
    return 1e6 if (rank, step) == (1, 40) else 1.0


def broken(rank: int, step: int) -> float:
    """That of rank 1 alone is NaN at two steps."""
    return float("nan") if rank == 1 and step in (15, 40) else 1.0


def judged(rule: str, factor: Factor, **options: Any) -> Callable[[int, Path], dict[str, Any]]:
    """A scenario of one training under one rule."""

    def scenario(rank: int, folder: Path) -> dict[str, Any]:
        training = Training(rank)
        guard = watch(training, folder, rule, **options)
        return told(training, guard, ended=ends(training, guard, factor), run=str(guard.run_path))

    return scenario


def restarted(rank: int, folder: Path) -> dict[str, Any]:
    """Rank 1 alone sees what calls for a restart with other weights, drawn by generators that differ."""
    made: list[tuple[Training, stepguard.Guard]] = []

    def train(attempt: Attempt) -> None:
        training = Training(rank)
        torch.manual_seed(rank)
        guard = watch(
            training, folder, "when: loss > 50, action: [{restart: {init: lsuv}}, halt]", on_error="raise"
        )
        made.append((training, guard))
        training.run(guard, large if attempt.number == 1 else plain)

    stepguard.supervise(train)
    return told(*made[-1], attempts=len(made))


@contextmanager
def signalled() -> Iterator[None]:
    """An attempt whose signals are kept until a step is over."""
    before = signal.getsignal(signal.SIGTERM)
    attempt = Attempt()
    attempt.link = SignalLink()
    token = CURRENT.set(attempt)
    try:
        yield
    finally:
        CURRENT.reset(token)
        signal.signal(signal.SIGTERM, before)


def stopped(rank: int, folder: Path) -> dict[str, Any]:
    """A signal to rank 1 alone, after which both go on in a new training."""
    rule = "when: loss > 1e9, action: [rollback, halt]"
    whole = Training(rank)
    whole.run(None, plain)

    def signals(rank: int, step: int) -> float:
        if (rank, step) == (1, 30):
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    with signalled():
        training = Training(rank)
        ended = ends(training, watch(training, folder, rule), signals)
    again = Training(rank)
    guard = watch(again, folder, rule)
    first = guard.resume()
    ends(again, guard, plain, first=first)
    return told(again, guard, ended=ended, first=first, whole=whole.digest())


def rolled_back(rank: int, folder: Path) -> dict[str, Any]:
    """The loss of rank 1 alone calls for a snapshot, and snapshots cost it so much that it takes few."""
    keeper.SHARE = 0.0005 if rank == 1 else 100.0
    return judged("when: loss > 50, action: [{rollback: {lr: 0.5}}, halt]", large)(rank, folder)


def alone(rank: int, folder: Path) -> dict[str, Any]:
    """Only rank 0 is guarded."""
    ranks._PATIENCE = 1.0
    training = Training(rank)
    if rank == 1:
        training.run(None, large)
        return {"digest": training.digest()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guard = watch(training, folder, "when: loss > 0, for: 5, action: skip")
        training.run(guard, large)
        guard.close()
    return told(training, guard, said=[str(each.message) for each in caught])


def uneven(rank: int, folder: Path) -> dict[str, Any]:
    """Two trainings that have nothing to do with each other; one ends early."""
    training = Training(rank, wrapped=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guard = watch(training, folder, "when: loss > 1e9, action: skip")
        training.run(guard, plain, steps=20 if rank == 1 else STEPS)
        guard.close()
    return told(training, guard, said=[str(each.message) for each in caught])


def stages(rank: int, folder: Path) -> dict[str, Any]:
    """A model that is cut in two: each rank knows its own layers; one of rank 1's goes wrong."""
    torch.manual_seed(rank)
    stage = nn.ModuleDict({f"stage{rank}": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    file = folder / f"rules-{rank}.yaml"
    file.write_text("version: 1\nrules: [{name: r, when: grad.absmax > 1e3, action: skip}]\n")
    guard = stepguard.watch(stage, optimizer, rules=file, run=folder / "runs", console=None)
    for step in range(10):
        optimizer.zero_grad()
        loss = stage[f"stage{rank}"](torch.ones(3, 4)).square().mean() * (1e6 if step == rank * 5 else 1.0)
        loss.backward()
        guard.step(loss)
    guard.close()
    return {"decided": [(each.step, each.layer) for each in guard.decisions]}


SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "skip": judged("when: loss > 50, action: skip", large),
    "halt": judged("when: loss > 50, action: halt", large),
    "shipped": judged("when: loss > 1e9, action: halt", broken, rules="default"),
    "rollback": rolled_back,
    "restart": restarted,
    "stopped": stopped,
    "alone": alone,
    "uneven": uneven,
    "stages": stages,
}


def take_part(name: str, rank: int, folder: Path) -> None:
    """Be one rank of a scenario, and leave what was seen."""
    torch.set_num_threads(1)
    certifying.LEAST, keeper.SHARE = 8, 100.0
    store = dist.FileStore(str(folder / "store"), RANKS)  # no port that others could want, too
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    found = SCENARIOS[name](rank, folder)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def fork(work: Callable[[], None]) -> int:
    """Do something in a process that shares nothing but the imports; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(200)  # a rank that waits for ever ends all the same
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder: Path, names: list[str]) -> None:
    found: dict[str, Any] = {}
    for name in names or SCENARIOS:
        own = folder / name
        own.mkdir()
        children = [fork(partial(take_part, name, rank, own)) for rank in range(RANKS)]
        codes = [os.waitpid(child, 0)[1] for child in children]
        assert not any(codes), f"{name}: a rank failed: {codes}"
        found[name] = [json.loads((own / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2:])
