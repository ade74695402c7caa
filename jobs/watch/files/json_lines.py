"""Files with an object of JSON on each line, such as `metrics.jsonl`. Pure."""

from __future__ import annotations

import json

from jobs.watch.files.rows import Row, numbers

_LONGEST = 1 << 20
_TIMES = ("_timestamp", "timestamp", "wall_time", "time")
_EARLIEST = 1e9
"""Unix seconds of 2001. A smaller number is a duration: scripts also log the time of a step."""


class LineDecoder:
    """Decodes one file. Other lines are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self.trouble = ""

    def feed(self, data: bytes) -> list[Row]:
        """Take bytes as they were appended; returns the rows of the lines that they complete."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST]  # a longer one is not whole any more
        rows = [_row(line) for line in lines if line.lstrip()[:1] == b"{"]
        return [row for row in rows if row is not None]


def _row(line: bytes) -> Row | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    values = dict(numbers(found))
    times = (values[name] for name in _TIMES if name in values)
    return Row(values, time=next((time for time in times if time >= _EARLIEST), None))
