"""A board drawn at the foot of the terminal, by nobody but the training's own calls."""

from __future__ import annotations

import atexit
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live

from stepguard.report.board import Board

_PAUSE = 0.25
"""Seconds between two redraws at least."""
_PATIENCE = 2.0
"""Seconds between two redraws at most, however long they take."""
_COST = 0.005
"""Share of the time that redraws may take."""
_MARGIN = 6
"""Lines of the terminal that are left to other things: the heading, the last prints."""


class _Stream(FileProxy):
    """`sys.stdout` or `sys.stderr` while the board is up: prints go above it, progress bars through."""

    def __init__(self, view: LiveView, console: Console, file: TextIO) -> None:
        super().__init__(console, file)
        self.view = view

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's own, so that progress bars know which characters they may draw with."""
        return str(getattr(self.rich_proxied_file, "encoding", None))

    def write(self, text: str) -> int:
        """Write as rich does; a carriage return is a progress bar, which wants the terminal for itself."""
        if text.startswith("\r"):
            self.view.give_way()
        return super().write(text) if self.view.is_up else self.rich_proxied_file.write(text)

    def flush(self) -> None:
        """Flush what was not printed yet."""
        super().flush()
        self.rich_proxied_file.flush()


class LiveView:
    """Draws the board when a redraw is due, prints above it, and steps aside for progress bars.

    There is one board in a terminal: that of the guard that drew first, as long as it is open.
    """

    def __init__(self, console: Console, board: Board) -> None:
        self._console = console
        self._board = board
        self._live: Live | None = None
        self._streams: dict[str, _Stream] = {}
        self._due = 0.0
        self._bar_seen = False

    @property
    def is_up(self) -> bool:
        """Whether the board stands in the terminal."""
        return self._live is not None

    def draw(self) -> None:
        """Draw the board if a redraw is due; otherwise this costs one look at the clock."""
        start = time.monotonic()
        if start < self._due:
            return
        if self._is_taken():
            self._take_down()
        else:
            width, height = self._console.size
            self._redraw(self._board.render(width, height - _MARGIN))
        took = time.monotonic() - start
        self._due = start + took + min(max(_PAUSE, took / _COST), _PATIENCE)

    def print(self, renderable: RenderableType) -> None:
        """Print above the board, or above the progress bars."""
        if self._is_held(sys.stdout):
            with self._console.capture() as capture:
                self._console.print(renderable)
            sys.stdout.write(capture.get())
        else:
            with _bars_cleared():
                self._console.print(renderable)

    def give_way(self) -> None:
        """A progress bar begins to draw: take the board down."""
        self._bar_seen = True
        self._take_down()

    def close(self) -> None:
        """Take the board down and give the streams back."""
        atexit.unregister(self.close)
        self._take_down()
        for name, stream in self._streams.items():
            if getattr(sys, name) is stream:
                setattr(sys, name, stream.rich_proxied_file)
        self._streams.clear()

    def _is_taken(self) -> bool:
        """Whether somebody else draws here. A bar that tqdm does not know of may come back any time."""
        if self._bar_seen and _tqdm() is not None:
            self._bar_seen = False
        return self._bar_seen or _has_bars() or self._is_held(sys.stdout) or self._is_held(sys.stderr)

    def _is_held(self, stream: object) -> bool:
        """Whether another live display holds the stream: one of rich, or the board of another guard."""
        own = isinstance(stream, _Stream) and stream.view is self
        return isinstance(stream, FileProxy) and not own

    def _redraw(self, board: RenderableType) -> None:
        if self._live is not None:
            self._live.update(board, refresh=True)
            return
        self._proxy_streams()
        self._live = Live(
            board,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def _proxy_streams(self) -> None:
        """Put the board's streams in place of those that write to the terminal; a redirected one stays."""
        if self._streams:
            return
        for name in ("stdout", "stderr"):
            file = getattr(sys, name)
            if file.isatty():
                self._streams[name] = _Stream(self, self._console, file)
                setattr(sys, name, self._streams[name])
        atexit.register(self.close)

    def _take_down(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _tqdm() -> Any:
    """The class `tqdm`, if the program has imported it."""
    return getattr(sys.modules.get("tqdm.std"), "tqdm", None)


def _has_bars() -> bool:
    return bool(getattr(_tqdm(), "_instances", ()))


def _bars_cleared() -> AbstractContextManager[Any]:
    return _tqdm().external_write_mode() if _has_bars() else nullcontext()
