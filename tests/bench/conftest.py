"""Keeps pytest from collecting the benchmarks, which import each other by their bare names."""

from __future__ import annotations

collect_ignore_glob = ["[!t]*.py", "turns.py"]
