"""What a killed run recorded after the step that it is resumed from: set aside, not deleted."""

from __future__ import annotations

from pathlib import Path

from stepguard.series.database import open_to_write
from stepguard.series.tables import LIMIT, Tables


def set_aside(path: Path, attempt: int, step: int) -> None:
    """Move frames and events of an attempt from `step` on to the attempt of its negative number.

    Readers see the attempt as it goes on; what was recorded before the kill stays in the file. RunFileError
    if it cannot be opened, sqlite3.Error if it cannot be written.
    """
    tables = Tables(open_to_write(path), LIMIT)
    try:
        tables.set_aside(attempt, step)
    finally:
        tables.close()
