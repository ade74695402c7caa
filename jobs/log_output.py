"""The log of a process of ours: JSON lines, and a log that fails never fails the program.

The problem: a full disk, a closed pipe or a value that cannot be written makes a logger raise. In
the middle of a transaction that is an error between the state in memory and the stored one; in an
error handler it ends the loop that the handler protects.

The design: the last processor and the sink swallow everything. What cannot be written is counted in
`dropped`, and the number goes out with the next line that can be written.

Limits: a pipe whose reader neither reads nor closes it blocks the writer, as for every program.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog


class TolerantFile:
    """A file to log to whose methods never raise.

    Attributes:
        dropped: Lines that could not be written since the last one that could.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.dropped = 0

    def write(self, text: str) -> None:
        """Write a line, or count it as dropped."""
        try:
            if self.dropped:
                self._file.write(f'{{"event": "lines of the log lost", "count": {self.dropped}}}\n')
                self.dropped = 0
            self._file.write(text.encode("utf-8", "backslashreplace").decode())
        except Exception:  # noqa: BLE001 (a log that fails must not fail the program)
            self.dropped += 1

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(Exception):
            self._file.flush()


def render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """One JSON line of an event, whatever it contains; a processor of structlog.

    A traceback is included. What has no JSON is replaced by its `repr`, and what has no `repr`
    either by the name of its type.
    """
    try:
        structlog.processors.format_exc_info(None, "", event)
    except Exception:  # noqa: BLE001 (an exception whose own text cannot be made)
        error = event.pop("exc_info", None)
        event["exception"] = _described(error)
    try:
        return json.dumps(event, default=_described)
    except Exception:  # noqa: BLE001 (keys that JSON does not have, circles)
        return json.dumps({"event": _described(event.get("event")), "fields": _described(event)})


def _described(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 (somebody else's `__repr__`)
        return f"<{type(value).__name__}>"


def configure(file: TextIO, *, level: int = 0, context: bool = False) -> None:
    """Send the log of this process to a file, one JSON object per line.

    Args:
        file: Where to; it may fail at any time.
        level: Lines below this level of :mod:`logging` are dropped.
        context: Add the variables that are bound to the context.
    """
    merge = [structlog.contextvars.merge_contextvars] if context else []
    structlog.configure(
        processors=[
            *merge,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", TolerantFile(file))),
    )
