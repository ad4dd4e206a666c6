"""`stepguard run`: run a training, restart it as the rules ask, and after a crash or a hang."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepguard.errors import StepguardError
from stepguard.recover.attempt import Attempt
from stepguard.recover.handover import Begun
from stepguard.recover.shelf import newest_certified, shelved
from stepguard.recover.supervisor import Supervisor, Terms
from stepguard.recover.supervisor_ending import Ending
from stepguard.recover.supervisor_record import record_outcome, resumed
from stepguard.report.words import count, settings

_EPILOG = """\
The command keeps the terminal, pipes and files of `stepguard run`: its output passes through untouched;
its own lines go to standard error. In the script `stepguard.watch` finds the attempt by itself:
it scales the learning rate, initialises, clips and seeds (from there on) as was asked for. With
`stepguard.supervise` in the script, `stepguard run` is the one that makes the attempts. Put it in front of a
launcher, not behind: stepguard run -- torchrun train.py; all ranks decide alike, and rank 0 reports. Whatever
the command has started ends with it.

what happens           what follows
rule asks to restart   the next attempt, from the beginning, with the remedy; at once
crash, kill, hang      the same attempt from the newest certified snapshot (`guard.resume()` in the script),
                       without one from the beginning; after 1 s, 2 s, 4 s ... 60 s
rule halts             exit code 70
failed before step 0   no restart: it would fail again
same step, same fault  no restart, the second time

A hang (--hang) is no sign of life for that long, and for twice the longest pause that the attempt survived;
ten times as long before the first step; never after the guard was closed. Signs of life are steps, forward
passes of the guarded model (evaluation, too), `guard.log` and snapshots. All stacks are printed, and the
training is killed. Give more than the longest stretch without any of these, in which data are prepared or
checkpoints written.

exit codes: 0 fine, 2 wrong usage, 70 halted by a rule, 75 a restart is asked for and no attempts are left;
after a crash that of the command, or 128 + signal. What a rule has asked for counts, even where the script
catches the exception and exits with 0, unless it goes on with a new guard.

With --auto the first optimizer that steps in a process is guarded by the shipped rules, with the model whose
parameters it moves. The loss is that of `loss.backward()`; the first step is judged by its gradients only;
after a crash the weights are those of the snapshot, while the script counts from the beginning. A script that
calls `stepguard.watch` itself is left alone. It needs a python that reads PYTHONPATH (not -I, not -E).

SIGTERM, SIGINT and SIGHUP end the training at its next step, with a snapshot, or --grace seconds later; a
second Ctrl-C at once. SIGUSR1 does as SIGTERM, and exits with 75. Handlers of the script's own stay. A Slurm
script that is requeued before its time is over:

  #SBATCH --requeue --signal=B:USR1@120
  trap 'kill -USR1 $run' USR1
  stepguard run --resume runs -- python train.py & run=$!
  wait $run; code=$?
  while kill -0 $run 2>/dev/null; do wait $run; code=$?; done
  [ $code -eq 75 ] && scontrol requeue $SLURM_JOB_ID
"""


def add(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run",
        help="run a training, and restart it",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="stepguard run [--restarts N] [--hang SECONDS] [--grace SECONDS] [--resume RUN] [--auto]"
        " -- CMD ...",
    )
    parser.add_argument(
        "--restarts", type=_whole, default=3, metavar="N", help="restarts at most, of any kind; default: 3"
    )
    parser.add_argument(
        "--hang", type=_seconds, metavar="SECONDS", help="restart what hangs for so long; default: never"
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="from a signal to SIGKILL; default: 20, as Slurm itself kills after 30",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run file, or with the newest run in a folder unless it was completed",
    )
    parser.add_argument("--auto", action="store_true", help="guard a script that knows nothing of stepguard")
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="CMD", help="after --: the training")


def run(args: argparse.Namespace) -> int:
    """Supervise the command; StepguardError if it cannot be started."""
    command = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not command:
        raise StepguardError("no command (expected: stepguard run -- python train.py)")
    attempt = Attempt() if args.resume is None else resumed(args.resume)
    terms = Terms(command, args.restarts, args.hang, args.grace, _bootstrap() if args.auto else {})
    teller = Teller(args.restarts + 1)
    if attempt.run_path is not None:
        teller.begins(attempt, 1, 0.0)
    code = Supervisor(terms, teller).run(attempt)
    teller.sums_up()
    return code


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")


def _bootstrap() -> dict[str, str]:
    """What makes every python below import the automatic guard as it starts."""
    folder = str(Path(__file__).parents[1] / "integrations" / "auto")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))}


class Teller:
    """Tells on standard error what the supervisor does, in plain lines, and at the end what became of it all.

    Args:
        final: how many processes are started at most.
    """

    def __init__(self, final: int) -> None:
        self._final = final
        self._rows: list[str] = []
        self._run_path: Path | None = None
        self._terminal = _terminal()

    def begins(self, attempt: Attempt, start: int, delay: float) -> None:
        """The start of a process follows, after so many seconds."""
        when = f" in {delay:g} s" if delay else ""
        with_ = f" with {remedy}" if (remedy := _remedy(attempt)) else ""
        self._say(f"start {start} of {self._final}{when}{with_}, {_whence(attempt)}")

    def passes_on(self, number: signal.Signals, grace: float) -> None:
        """A signal was passed on to the training."""
        self._say(f"{number.name}: the training is asked to end; in {grace:g} s it will be killed")

    def hangs(self, seconds: float, step: int) -> None:
        """No sign of life for so long."""
        where = f"after step {step}" if step >= 0 else "before the first step"
        self._say(f"no sign of life for {seconds:.0f} s {where}; its stacks, then it is ended:")

    def ended(
        self, attempt: Attempt, start: int, ending: Ending, begun: Begun | None, seconds: float
    ) -> None:
        """A process has ended. What killed it is written to the run file, too."""
        self._restore()
        if begun is not None and begun.run_path is not None:
            self._run_path = Path(begun.run_path)
            kind = "error" if ending.kind in ("crash", "hang") else ending.kind
            record_outcome(self._run_path, begun.number, f"{kind}: {ending.words}")
        at = f"step {ending.step}" if ending.step >= 0 else "no step"
        remedy = f" ({_remedy(attempt)})" if _remedy(attempt) else ""
        self._rows.append(f"start {start}{remedy}: {at}, {_clock(seconds)}: {ending.words}")
        if ending.kind != "fine" or len(self._rows) > 1:
            self._say(self._rows[-1])
        if ending.kind == "stopped" and self._run_path is not None and shelved(self._run_path):
            self._say(f"go on with: stepguard run --resume {self._run_path} -- CMD")
        if begun is None or not begun.guarded:
            self._say(
                "no guard was made in it: `stepguard.watch` was not called (--auto guards a script"
                " that does not know it)"
            )

    def gives_up(self, why: str) -> None:
        """No attempt follows."""
        self._say(f"no restart: {why}")

    def sums_up(self) -> None:
        """All attempts once more, where there were several, and where to see more."""
        if len(self._rows) < 2:
            return
        self._say(f"{count(len(self._rows), 'start')}:")
        for row in self._rows:
            self._write(f"  {row}\n")
        if self._run_path is not None:
            self._say(f"more: stepguard show {self._run_path}")

    def _say(self, text: str) -> None:
        self._write(f"stepguard run: {text}\n")

    def _write(self, text: str) -> None:
        """A terminal that was closed, or a pipe that nobody reads, costs the telling only."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def _restore(self) -> None:
        """Make the terminal what it was: a training that was killed may have hidden cursor and echo."""
        if self._terminal is None:
            return
        with suppress(termios.error, OSError):
            termios.tcsetattr(sys.stderr.fileno(), termios.TCSADRAIN, self._terminal)
        self._write("\x1b[?25h\r")


def _terminal() -> list[Any] | None:
    with suppress(termios.error, OSError, ValueError):
        if sys.stderr.isatty():
            return termios.tcgetattr(sys.stderr.fileno())
    return None


def _remedy(attempt: Attempt) -> str:
    """What an attempt changes of the script's own settings; empty for nothing."""
    lr = None if attempt.lr_scale == 1.0 else attempt.lr_scale
    changed = {"lr": lr, "init": attempt.init, "clip": attempt.clip, "pace": attempt.pace}
    return settings({name: value for name, value in changed.items() if value is not None})


def _whence(attempt: Attempt) -> str:
    """Where an attempt begins: at a snapshot or from nothing."""
    if attempt.resume is None:
        return "from the beginning"
    snapshot = newest_certified(attempt.resume)
    if snapshot is None:
        return "from the beginning"
    step = next(shelf.step for shelf in shelved(attempt.resume) if shelf.path == snapshot)
    return f"from the snapshot of step {step}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
