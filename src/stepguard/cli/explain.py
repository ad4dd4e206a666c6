"""`stepguard explain`: what a rule looks at, why, and what it does; or another word of rule files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepguard.errors import StepguardError
from stepguard.report.explanation import of_function, of_rule, of_signal, place_of
from stepguard.report.vocabulary import VOCABULARY, Lines, of_action, of_word
from stepguard.rules import tree
from stepguard.rules.actions import ACTIONS
from stepguard.rules.functions import FUNCTIONS
from stepguard.rules.packs import load_rules, pack_names, pack_path
from stepguard.rules.rule import Rule
from stepguard.rules.wording import nearest, quote, say
from stepguard.signals import SIGNALS, signal

FINE = 0


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "explain", help="explain a rule or a word of rule files", description=__doc__
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a rule, a signal, a function such as crash, an action, or a word",
    )
    parser.add_argument("--rules", nargs="+", metavar="FILE", help="rule files; default: every shipped pack")


class Shown(NamedTuple):
    """A rule with the pack or the files it was loaded from."""

    pack: str
    """Empty for the user's own files."""
    rule: Rule
    text: str
    """Of the file in which the rule stands."""

    @property
    def name(self) -> str:
        """The rule as lists name it: `default/rising-crash`."""
        return f"{self.pack}/{self.rule.name}" if self.pack else self.rule.name

    @property
    def place(self) -> str:
        """FILE:LINE of the rule."""
        return place_of(self.rule, pack_path(self.pack) if self.pack else None)


def shipped() -> Iterator[Shown]:
    """Every rule of every pack, each under the pack in whose file it stands."""
    for name in pack_names():
        rules = load_rules(name)
        own = pack_path(name).name
        yield from (Shown(name, rule, rules.texts[own]) for rule in rules if rule.place.file == own)


def of_files(files: Sequence[str]) -> list[Shown]:
    """Every rule of these files; RuleFileError with their faults."""
    rules = load_rules(files)
    return [Shown("", rule, rules.texts[rule.place.file]) for rule in rules]


def run(args: argparse.Namespace) -> int:
    """Explain everything of that name; StepguardError if there is nothing."""
    rules = list(shipped()) if args.rules is None else of_files(args.rules)
    found = list(_explanations(args.name, rules))
    if not found:
        names = [*(each.rule.name for each in rules), *FUNCTIONS, *SIGNALS, *VOCABULARY]
        near = nearest(args.name, names)
        expected = "a rule, a function, a signal, an action or a word of rule files"
        raise StepguardError(say("nothing of that name", expected=expected, got=quote(args.name), near=near))
    console = Console()
    for title, lines in found:
        console.print(Text(title, style="bold"))
        console.print(Padding(_table(lines), (0, 0, 1, 2)))
    return FINE


def _explanations(name: str, rules: Sequence[Shown]) -> Iterator[tuple[str, Lines]]:
    for each in rules:
        if each.rule.name == name:
            yield each.name, of_rule(each.rule, each.place, each.text)
    if name in FUNCTIONS:
        yield name, of_function(FUNCTIONS[name], [each.name for each in rules if _calls(each.rule, name)])
    known = signal(name)
    if known is not None:
        yield name, of_signal(known, [each.name for each in rules if name in each.rule.condition.signals])
    if name in ACTIONS:
        yield name, of_action(name, [e.name for e in rules if name in {a.kind for a in e.rule.ladder}])
    if words := list(of_word(name)):
        yield name, iter(words)


def _calls(rule: Rule, function: str) -> bool:
    nodes = tree.walk(rule.condition.root)
    return any(isinstance(node, tree.Call) and node.function == function for node in nodes)


def _table(lines: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines:
        table.add_row(label, Text(text))
    return table
