"""The benchmarks run, in seconds, and the README's tables can be made of what they write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

BENCH = Path(__file__).parent


def run(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, BENCH / script, *arguments], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(name: str, results: Path) -> str:
    code = "import json, readme, sys; print(readme.TABLES[sys.argv[1]](json.load(open(sys.argv[2]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, name, results], cwd=BENCH, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cost_measures_pairs_and_makes_the_readme_table(tmp_path: Path) -> None:
    found = tmp_path / "cost.json"
    few = ("--minutes", "0.02", "--threads", "1", "--workloads", "lecture", "--watchers")
    shown = run("cost.py", *few, "stepguard, every step", "naive .item()", "--json", found)
    results: dict[str, Any] = json.loads(found.read_text())
    watchers = results["workloads"]["lecture"]["watchers"]
    assert set(watchers) == {"stepguard, every step", "naive .item()"}
    for watcher in watchers.values():
        assert watcher["pairs"] == len(watcher["ratios"]) > 0
        assert watcher["low"] <= watcher["median"] <= watcher["high"]
    assert "stepguard, every step" in shown
    made = table("cost", found)
    assert f"{watchers['naive .item()']['median']:.2f} (" in made
    assert f"torch {results['machine']['packages']['torch']}" in made


def test_scale_measures_all_parts_and_draws_them(tmp_path: Path) -> None:
    found, picture = tmp_path / "scale.json", tmp_path / "scale.svg"
    shown = run("scale.py", "--size", "0.0001", "--json", found, "--svg", picture)
    results: dict[str, Any] = json.loads(found.read_text())
    assert [row["n"] for row in results["layers"]] == [10, 100]
    assert results["run file"]["bytes_a_layer"] > 0
    assert all(row["guard"] < row["allowed"] for row in results["memory"])
    assert "slope" in shown
    assert len(list(ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}circle"))) > 0
    assert "| layers, all signals | 10: " in table("scale", found)


def test_replay_writes_a_run_and_replays_it_again(tmp_path: Path) -> None:
    kept = ("--layers", "3", "--steps", "450", "--total", "--file", tmp_path / "run.sqlite")
    written = (run("replay.py", *kept), (tmp_path / "run.sqlite").stat().st_mtime_ns)
    again = (run("replay.py", *kept), (tmp_path / "run.sqlite").stat().st_mtime_ns)
    assert all("450 frames of 3 layers" in shown for shown, _ in (written, again))
    assert written[1] == again[1]
