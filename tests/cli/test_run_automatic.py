"""`stepguard run --auto` over scripts that know nothing of stepguard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stepguard.series.runfile import RunFile, find_run

SCRIPT = """
import sys
import torch
import torch.nn.functional as F

class Wrapper(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

    def forward(self, x):
        return self.net(x)

torch.manual_seed(0)
model, other = Wrapper(), torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print("begins", flush=True)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(60):
    with torch.no_grad():
        x = other(torch.randn(32, 8))
    loss = F.cross_entropy(model(x), torch.randint(0, 2, (32,)))
    if step >= 20 and not 0.009 < moved < 0.011:  # what only the remedy's pace cures
        loss = loss * float("nan")
    before = torch.nn.utils.parameters_to_vector(model.net[0].parameters()).detach()
    optimizer.zero_grad()
    if "scaled" in sys.argv:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        optimizer.step()
    after = torch.nn.utils.parameters_to_vector(model.net[0].parameters()).detach()
    moved = float((after - before).norm() / before.norm())
print("the end")
"""


def run(folder: Path, *arguments: str) -> tuple[int, list[str], str]:
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "stepguard", "run", "--auto", "--", sys.executable, "train.py"]
    result = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr


def test_it_is_guarded_restarted_and_cured(tmp_path: Path) -> None:
    code, out, err = run(tmp_path)
    assert code == 0, err
    assert out == ["begins", "begins", "the end"]
    with RunFile(find_run(tmp_path / "runs")) as recording:
        first, second = recording.attempts()
        frames = list(recording.frames(second.number))
    assert first.outcome is not None
    assert first.outcome.startswith("restart: non-finite")
    assert second.outcome == "completed"
    assert [layer.name for layer in second.layers] == ["net.0", "net.1", "net.2"]
    assert len(frames) == 60
    assert all(0.4 < frame.scalars["loss"] < 1.2 for frame in frames)


def test_the_hidden_sitecustomize_runs_and_pythons_without_torch_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hidden')", encoding="utf-8")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "stepguard", "run", "--auto", "--"),
            *(sys.executable, "-c", "import sys; print('torch' in sys.modules, 'stepguard' in sys.modules)"),
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.stdout.splitlines()[-2:] == ["hidden", "False False"]
