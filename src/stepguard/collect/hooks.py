"""Hooks that can be told not to listen, and that stay behind when their module is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class _Nobody:
    """Who listens to the hooks of a copied model."""

    active = False


class _Listener(Protocol):
    active: bool


class Hook:
    """A hook that costs next to nothing while nobody listens.

    It stays behind when its module is pickled or copied: the copy measures nothing.
    """

    def __init__(self, listener: _Listener, call: Callable[..., None]) -> None:
        self._listener, self._call = listener, call

    def __call__(self, *args: Any) -> None:
        """Pass the call on if somebody listens."""
        if self._listener.active:
            self._call(*args)

    def __reduce__(self) -> tuple[Callable[..., Hook], tuple[type[_Nobody], Callable[..., None]]]:
        return Hook, (_Nobody, _nothing)


class InputHook(Hook):
    """The hook on the model itself, which looks at every call."""

    def __call__(self, *args: Any) -> None:
        """Pass the call on."""
        self._call(*args)


def _nothing(*_args: Any) -> None:
    """What a copied hook does."""
