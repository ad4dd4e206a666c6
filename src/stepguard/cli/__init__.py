"""The command line: one file a command, each with `add(subparsers)` and `run(args) -> int`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from stepguard.errors import StepguardError

COMMANDS = ("run", "check", "test", "rules", "explain", "schema", "replay", "show")
"""Every command, by the name of its module."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; 2 for input that cannot be read.

    Only the module of the command that is named is imported, all of them for the help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = [name for name in COMMANDS if name in arguments[:1]]
    modules = {name: import_module(f"stepguard.cli.{name}") for name in named or COMMANDS}
    parser = argparse.ArgumentParser("stepguard", description="A guard around optimizer.step().")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in modules.values():
        module.add(subparsers)
    parsed = parser.parse_args(arguments)
    try:
        code = modules[parsed.command].run(parsed)
        sys.stdout.flush()
    except StepguardError as error:
        print(f"stepguard {parsed.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
