"""Kills a training at random moments and resumes it, until it ends: `killed.py FOLDER STEPS KILLS SEED`.

Prints one JSON object: kills, how far each came, and the results with and without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepguard.guard import watch
from stepguard.recover import certifying, keeper, shelf
from stepguard.series.runfile import RunFile

RULES = "version: 1\nrules: [{name: high, when: loss > 1e9, action: [{rollback: {lr: 0.5}}, halt]}]\n"


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, from a generator of its own."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 20, generator=generator)
    return x, x[:, :4].argmax(1)


def train(folder: Path, steps: int) -> None:
    """Train to the end, resumed if there is something to resume; leave a digest of everything."""
    torch.set_num_threads(1)  # trainings beside it would make more of them wait for each other
    torch.manual_seed(0)
    layers = nn.Linear(20, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 4)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rules = folder / "rules.yaml"
    rules.write_text(RULES)
    options: dict[str, Any] = {"rules": rules, "run": folder / "runs", "console": None}
    with watch(model, optimizer, scheduler=scheduler, on_error="raise", **options) as guard:
        for step in range(guard.resume(), steps):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            guard.step(loss)
            scheduler.step()
    digest = hashlib.sha256(repr(optimizer.param_groups[0]["lr"]).encode())
    for state in (
        model.state_dict(),
        *optimizer.state_dict()["state"].values(),
        {"g": torch.get_rng_state()},
    ):
        for name, value in state.items():
            digest.update(name.encode() + value.numpy().tobytes())
    (folder / "result").write_text(digest.hexdigest())


def warm_up() -> None:
    """Have everything imported that a training imports when it begins, so that the children need not."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.square().sum().backward()
    optimizer.step()


def in_child(work: Callable[[], None]) -> int:
    """Do something in a process that shares nothing but the imports; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(folder: Path, steps: int) -> tuple[str, float]:
    """Train to the end without a kill; the result, and how long it took."""
    began = time.monotonic()
    child = in_child(lambda: train(folder, steps))
    assert os.waitpid(child, 0)[1] == 0, "the training failed"
    return (folder / "result").read_text(), time.monotonic() - began


def empty(path: Path) -> bool:
    """Whether a run file has no tables, and nothing to lose."""
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def look(folder: Path) -> tuple[int, int]:
    """Open what the kill has left: drafts that were being written, and the step of the newest snapshot."""
    drafts, newest = 0, 0
    for path in (folder / "runs").glob("*.sqlite"):
        if empty(path):  # killed while it was made
            continue
        with RunFile(path) as run:
            for record in run.attempts():
                assert all(frame.step >= 0 for frame in run.frames(record.number))
        for found in shelf.shelved(path):
            assert shelf.whole(found), f"{found.path} is torn"
            newest = max(newest, found.step)
        drafts += len(list(shelf.folder_of(path).glob("*.draft")))
    return drafts, newest


def main(folder: Path, steps: int, kills: int, seed: int) -> None:
    certifying.LEAST = 8
    keeper.SHARE = 10.0  # a snapshot whenever one is certified, whatever it costs
    dice = random.Random(seed)
    warm_up()
    (folder / "whole").mkdir()
    expected, seconds = finish(folder / "whole", steps)
    left, drafts, results = kills, 0, []
    reached: list[int] = []
    while left:
        run = folder / f"killed-{len(results)}"
        run.mkdir()
        for _ in range(min(left, 10)):
            child = in_child(lambda run=run: train(run, steps))
            time.sleep(dice.uniform(0.0, 0.8 * seconds))
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not os.WIFSIGNALED(status):
                assert status == 0, "the training failed"
                break
            left -= 1
            found, newest = look(run)
            drafts += found
            reached.append(newest)
        results.append(finish(run, steps)[0])
    told = {"kills": len(reached), "drafts": drafts, "newest": reached, "expected": expected}
    sys.stdout.write(json.dumps({**told, "results": results}))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:]))
