from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepguard.report import measured
from stepguard.rules.packs import load_rules, pack_names, pack_path, read_text_rules


def rule(condition: str):
    (one,) = read_text_rules(f"version: 1\nrules:\n  - name: own\n    when: {condition}\n", "own.yaml")
    return one


def test_figures_are_quoted_only_for_the_condition_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "figures.json"
    counts = {"healthy_runs": 300, "healthy_fired": 1, "failing_runs": 40, "failing_fired": 37}
    file.write_text(json.dumps({"own": {"condition": "loss > 5", **counts}}))
    assert measured.measured(rule("loss > 5")) == measured.UNKNOWN  # of the packs' own file
    monkeypatch.setattr(measured, "pack_path", lambda name: tmp_path / f"{name}.yaml")
    monkeypatch.setattr(measured, "FILE", file.name)
    assert measured.measured(rule("loss   > 5")) == "fired in 1 of 300 healthy runs, in 37 of 40 failing"
    assert measured.measured(rule("loss > 6")) == measured.UNKNOWN


def test_the_shipped_figures_are_of_shipped_rules():
    figures = measured.figures(pack_path("default").with_name(measured.FILE))
    names = {each.name for pack in pack_names() for each in load_rules(pack)}
    assert set(figures) <= names
    for name, found in figures.items():
        assert 0 <= found["healthy_fired"] <= found["healthy_runs"], name
        assert 0 <= found["failing_fired"] <= found["failing_runs"], name
