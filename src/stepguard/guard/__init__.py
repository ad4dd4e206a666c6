"""The session around one model and optimizer: `watch()` makes it, `Guard` is it."""

from __future__ import annotations

from stepguard.guard.session import Guard
from stepguard.guard.watching import watch

__all__ = ["Guard", "watch"]
