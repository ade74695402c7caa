"""A file that says how far the kernel's log was read, for the next process that reads it."""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from jobs.hardware.kernel_log import Cursor

_log = structlog.get_logger(__name__)


class CursorFile:
    """The file. One that is damaged or cannot be written costs lines twice, and no more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: Cursor | None = None

    def read(self) -> Cursor | None:
        """How far; None: nothing is known."""
        try:
            told = json.loads(self._path.read_text())
            self._written = Cursor(str(told["boot"]), int(told["sequence"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self._written

    def write(self, cursor: Cursor) -> None:
        """Note how far the log has been read, if that has changed."""
        if cursor == self._written:
            return
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(cursor._asdict()))
            fresh.replace(self._path)
        except OSError as error:
            if self._written is not None:
                _log.warning("cannot note how far the kernel's log was read", reason=str(error))
            return
        self._written = cursor
