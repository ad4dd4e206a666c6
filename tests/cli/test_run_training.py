"""`stepguard run` over real trainings: remedies, snapshots and signals, end to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from stepguard.series.runfile import RunFile, find_run

RULES = """
version: 1
rules:
  - name: asks
    when: step == 5 and loss > 0
    action: [{restart: {lr: 0.5, seed: 3, init: kaiming, clip: 1.0}}, warn]
  - {name: acts, when: loss < -1, action: [{rollback: {lr: 0.5}}, halt]}
"""
TRAINING = """
import os, signal, sys, time
import torch
import torch.nn.functional as F
import stepguard

def train(attempt=None):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    guard = stepguard.watch(model, optimizer, rules="rules.yaml", console=None)
    first = guard.resume()
    initialised = not torch.equal(before, model[0].weight)
    lr = optimizer.param_groups[0]["lr"]
    print("from", first, "lr", lr, "anew", initialised, torch.initial_seed(), flush=True)
    for step in range(first, 150):
        loss = F.cross_entropy(model(torch.randn(32, 8)), torch.randint(0, 2, (32,)))
        optimizer.zero_grad()
        loss.backward()
        guard.step(loss)
        happens(step, first, lr)
    guard.close()
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Training:
    def __init__(self, folder: Path, script: str, *options: str) -> None:
        (folder / "rules.yaml").write_text(RULES, encoding="utf-8")
        (folder / "train.py").write_text(TRAINING + script, encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stepguard", "run", *options, "--", sys.executable, "train.py"],
            cwd=folder,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self) -> tuple[int, list[str], str]:
        out, err = self.process.communicate(timeout=100)
        return self.process.returncode, out.splitlines(), err


def outcomes(folder: Path) -> list[str | None]:
    with RunFile(find_run(folder / "runs")) as run:
        return [attempt.outcome for attempt in run.attempts()]


def test_a_plain_script_is_restarted_with_the_remedy_and_after_a_kill_resumed(tmp_path: Path) -> None:
    script = """
from stepguard.recover.shelf import newest_certified
from stepguard.series.runfile import find_run

def happens(step, first, lr):
    if step == 120 and lr == 0.05 and first == 0:
        while newest_certified(find_run("runs")) is None:  # it is written in the background
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
train()
"""
    code, out, err = Training(tmp_path, script).end()
    assert code == 0, err
    assert out[0] == "from 0 lr 0.1 anew False 0"
    assert out[1] == "from 0 lr 0.05 anew True 3"
    resumed = re.fullmatch(r"from (\d+) lr 0.05 anew True \d+", out[2])
    assert resumed is not None, out
    assert 0 < int(resumed[1]) <= 120
    assert "start 3 of 4 in 1 s with learning rate x0.5" in err
    assert f"from the snapshot of step {resumed[1]}" in err
    assert outcomes(tmp_path) == ["restart: asks", "completed"]


def test_supervise_makes_one_attempt_a_process_and_goes_on_after_a_signal(tmp_path: Path) -> None:
    script = """
def happens(step, first, lr):
    if step == 30 and first == 0:
        print("on", flush=True)
    time.sleep(0.02 if first == 0 else 0)
stepguard.supervise(train, attempts=3, seed=40)
print("the end")
"""
    training = Training(tmp_path, script, "--resume", "runs", "--restarts", "1")
    assert training.process.stdout is not None
    begun = [training.process.stdout.readline() for _ in range(3)]
    assert [line.split()[:4] for line in begun[:2]] == [
        ["from", "0", "lr", "0.1"],
        ["from", "0", "lr", "0.05"],
    ]
    assert begun[2] == "on\n"
    training.process.send_signal(signal.SIGUSR1)
    code, out, err = training.end()
    assert (code, out) == (75, []), err
    code, out, err = Training(tmp_path, script, "--resume", "runs").end()
    assert code == 0, err
    resumed = re.fullmatch(r"from (\d+) lr 0.05 anew True \d+", out[0])
    assert resumed is not None, out
    assert int(resumed[1]) > 30
    assert out[1:] == ["the end"]
    assert outcomes(tmp_path) == ["restart: asks", "completed"]
