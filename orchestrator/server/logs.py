"""Reads the logs of ranks, a piece at a time."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

from pydantic import BaseModel

from orchestrator.errors import NotFoundError

_CHUNK = 65536
PIECE_BYTES = 1_000_000
"""Most bytes of one answer."""


class LogFile(BaseModel):
    """The log of one rank of one attempt."""

    attempt: int
    rank: int
    bytes: int
    written_at: dt.datetime


class LogPiece(BaseModel):
    """A part of a log. Ask again with `offset=next_offset` for what came after it."""

    text: str
    offset: int
    next_offset: int
    bytes: int
    """Size of the whole log now."""


def log_files(directory: Path) -> list[LogFile]:
    """The logs under a run's log directory, by attempt and rank."""
    found = []
    for path in directory.glob("attempt-*/rank-*.log"):
        match = re.fullmatch(r"attempt-(\d+)/rank-(\d+)\.log", str(path.relative_to(directory)))
        if match is None:
            continue
        status = path.stat()
        found.append(
            LogFile(
                attempt=int(match[1]),
                rank=int(match[2]),
                bytes=status.st_size,
                written_at=dt.datetime.fromtimestamp(status.st_mtime, dt.UTC),
            )
        )
    return sorted(found, key=lambda file: (file.attempt, file.rank))


def log_path(directory: Path, attempt: int, rank: int) -> Path:
    """Where the log of one rank lies."""
    return directory / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"


def read_piece(path: Path, *, offset: int = 0, tail: int | None = None) -> LogPiece:
    """Read from `offset`, or the last `tail` lines. Ends at a whole line where there is one.

    Raises:
        NotFoundError: there is no such log.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = min(offset, size) if tail is None else _tail_offset(path, size, tail)
            file.seek(start)
            raw = file.read(PIECE_BYTES)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no log {path.parent.name}/{path.name} yet") from error
    if len(raw) == PIECE_BYTES and b"\n" in raw:
        raw = raw[: raw.rindex(b"\n") + 1]
    raw = raw[: _whole_characters(raw)]
    return LogPiece(
        text=raw.decode(errors="replace"), offset=start, next_offset=start + len(raw), bytes=size
    )


def _tail_offset(path: Path, size: int, lines: int) -> int:
    """Where the last `lines` lines begin, within what one answer holds."""
    position, newlines = size, 0
    floor = max(0, size - PIECE_BYTES)
    with path.open("rb") as file:
        while position > floor:
            begin = max(floor, position - _CHUNK)
            file.seek(begin)
            block = file.read(position - begin)
            for index in range(len(block) - 1, -1, -1):
                if block[index] != ord("\n") or begin + index == size - 1:
                    continue
                newlines += 1
                if newlines == lines:
                    return begin + index + 1
            position = begin
    return floor if lines > 0 else size


def _whole_characters(raw: bytes) -> int:
    """Length of `raw` without a UTF-8 character cut off at its end."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(raw) - back if needed > back else len(raw)
    return len(raw)
