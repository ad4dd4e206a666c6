"""`stepguard check`: every fault of every rule file, and what is surely not meant."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepguard.errors import Problem, RuleFileError
from stepguard.rules.lint import lint
from stepguard.rules.packs import pack_names, read_rules
from stepguard.rules.wording import plural

FINE, FINDINGS, UNREADABLE = 0, 1, 2


@dataclass
class Report:
    """What was found, each once, in the order of the files."""

    files: int
    rules: int = 0
    findings: dict[Problem, str] = field(default_factory=dict[Problem, str])
    """The level of each: `error`, `warning` or `note`."""

    def count(self, level: str) -> int:
        """How many findings of a level there are."""
        return sum(found == level for found in self.findings.values())

    @property
    def fine(self) -> bool:
        """Whether there is nothing but notes."""
        return self.count("note") == len(self.findings)


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("check", help="check rule files", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a rule file, or a pack's name")
    parser.add_argument("--format", choices=tuple(_FORMATS), default="text", help="default: text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the files, print what was found, and return the exit code."""
    report = check(args.files)
    print(_FORMATS[args.format](report))
    if not all(name in pack_names() or Path(name).is_file() for name in args.files):
        return UNREADABLE
    return FINE if report.fine else FINDINGS


def check(files: Sequence[str]) -> Report:
    """Check each file for itself, with all that it extends."""
    report = Report(len(files))
    for file in files:
        try:
            loaded = read_rules(file)
        except RuleFileError as error:
            report.findings.update(dict.fromkeys(error.problems, "error"))
            continue
        report.rules += len(loaded.ruleset.rules)
        report.findings.update({each.problem: each.level for each in lint(loaded)})
    return report


def _text(report: Report) -> str:
    shown = {"error": "", "warning": " [warning]", "note": " [note]"}
    lines = [f"{problem}{shown[level]}" for problem, level in report.findings.items()]
    counts = [plural(report.count(level), level) for level in shown if report.count(level)]
    total = f"{plural(report.files, 'file')}, {plural(report.rules, 'rule')}"
    return "\n".join([*lines, f"{total}: {', '.join(counts) or 'fine'}"])


def _json(report: Report) -> str:
    problems = [
        {
            "file": problem.place.file,
            "line": problem.place.line,
            "column": problem.place.column,
            "rule": problem.rule,
            "level": level,
            "what": problem.what,
        }
        for problem, level in report.findings.items()
    ]
    return json.dumps({"files": report.files, "rules": report.rules, "problems": problems}, indent=2)


def _github(report: Report) -> str:
    """Write workflow commands, which GitHub shows at the line of a pull request."""
    return "\n".join(_command(problem, level) for problem, level in report.findings.items())


def _command(problem: Problem, level: str) -> str:
    place = problem.place
    name = {"note": "notice"}.get(level, level)
    title = f"rule {problem.rule}" if problem.rule else "rule file"
    values = {"file": place.file, "line": place.line, "col": place.column, "title": title}
    properties = ",".join(f"{key}={_escaped(str(value), ',:')}" for key, value in values.items())
    return f"::{name} {properties}::{_escaped(problem.what)}"


def _escaped(text: str, more: str = "") -> str:
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


_FORMATS: dict[str, Callable[[Report], str]] = {"text": _text, "json": _json, "github": _github}
