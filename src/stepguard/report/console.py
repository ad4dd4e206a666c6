"""What a person sees while the training runs: a live board on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from stepguard.report.board import Board
from stepguard.report.diagnosis import Diagnosis
from stepguard.report.live import LiveView
from stepguard.report.marks import Mark
from stepguard.report.palette import QUIET
from stepguard.report.summary import Summary
from stepguard.report.words import count
from stepguard.rules.alert import Change
from stepguard.signals import Frame, Layer


class ConsoleReporter:
    """Tells a person at `console` how a training goes.

    On a terminal there is a live board, and diagnoses are printed in full above it. Anywhere else each
    event is one plain line, and a frame is no event. It never starts a thread. Where several guards are open,
    the `name` of the model stands in each line: `stepguard[Generator]: ...`.
    """

    def __init__(self, console: Console, name: str = "model") -> None:
        self._console = console
        self._mark = Mark(name)
        self._board = Board(self._mark)
        self._said: set[tuple[str, str]] = set()
        """Rules, and what was said of why they fire."""
        self._view = LiveView(console, self._board)
        self._is_live = console.is_interactive and not console.options.ascii_only

    def frame(self, frame: Frame, layers: Sequence[Layer]) -> None:
        """Take a frame; the board is drawn only if a redraw is due."""
        if self._is_live:
            self._board.take(frame, layers)
            self._view.draw()

    def changes(self, changes: Sequence[Change]) -> None:
        """Take changes of alerts: the board marks what fires, and what is over is said."""
        over = self._board.change(changes)
        for rule, layers in over.items():
            at = f" at {count(layers, 'layer')}" if layers else ""
            self._say(f"step {changes[0].step}: {rule} is over{at}")

    def diagnosis(self, diagnosis: Diagnosis) -> None:
        """Print a diagnosis: in full on a terminal, as one line anywhere else.

        A line says once why a rule fires and what helps, and again where that is something else.
        """
        why = diagnosis.rule, _without_digits(diagnosis.why)
        self._print(self._headed(diagnosis), [diagnosis.line("" if why in self._said else diagnosis.why)])
        self._said.add(why)

    def note(self, text: str) -> None:
        """Print one line that is no alert: a fault of the guard, a remedy that was applied."""
        self._say(text)

    def summary(self, summary: Summary) -> None:
        """Print what became of the run."""
        self._print(self._headed(summary), summary.lines())

    def close(self) -> None:
        """Take the board down. Printing still works afterwards."""
        self._view.close()
        self._mark.close()

    def _say(self, text: str) -> None:
        self._print(Text.assemble((f"stepguard{self._mark}: ", QUIET), text), [f"stepguard: {text}"])

    def _headed(self, renderable: RenderableType) -> RenderableType:
        """Set off from what is printed around it, and below the mark if there is one."""
        head = [Text(f"stepguard{self._mark}:", style=QUIET)] if self._mark.shown else []
        return Padding(Group(*head, renderable), (1, 0))

    def _print(self, renderable: RenderableType, lines: Sequence[str]) -> None:
        if self._console.is_terminal and not self._console.options.ascii_only:
            self._view.print(renderable)
            return
        for line in lines:
            self._print_plain(" ".join(line.replace("stepguard:", f"stepguard{self._mark}:", 1).split()))

    def _print_plain(self, line: str) -> None:
        """One line whatever its length, in the characters that the stream knows."""
        known = line.encode(self._console.encoding, "replace").decode(self._console.encoding)
        self._console.print(Text(known), soft_wrap=True)


def _without_digits(text: str) -> str:
    """What stays the same where the same is said of another step."""
    return "".join(character for character in text if not character.isdigit())
