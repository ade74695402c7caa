"""Reads the logs of ranks, a piece at a time."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import BaseModel

from jobs.log_files import end_of, older_parts
from orchestrator.errors import NotFoundError

_CHUNK = 65536
PIECE_BYTES = 1_000_000
"""Most bytes of one answer."""
_TRIES = 5
"""A log is rotated every few megabytes: two rotations during one look are unlikely."""


class LogFile(BaseModel):
    """The log of one rank of one attempt."""

    attempt: int
    rank: int
    bytes: int
    written_at: dt.datetime


class LogPiece(BaseModel):
    """A part of a log. Ask again with `offset=next_offset` for what came after it."""

    text: str
    """Empty at the end of the log. States of a progress bar are parted by carriage returns."""
    offset: int
    """Where the text begins; later than asked for if older parts of the log were deleted."""
    next_offset: int
    bytes: int
    """Size of the whole log now, with the parts that were deleted."""


def log_files(directory: Path) -> list[LogFile]:
    """The logs under a run's log directory, by attempt and rank."""
    found = []
    for path in directory.glob("attempt-*/rank-*.log"):
        match = re.fullmatch(r"attempt-(\d+)/rank-(\d+)\.log", str(path.relative_to(directory)))
        if match is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # rotated or deleted at this moment
            status = path.stat()
            found.append(
                LogFile(
                    attempt=int(match[1]),
                    rank=int(match[2]),
                    bytes=end_of(older_parts(path)) + status.st_size,
                    written_at=dt.datetime.fromtimestamp(status.st_mtime, dt.UTC),
                )
            )
    return sorted(found, key=lambda file: (file.attempt, file.rank))


def log_path(directory: Path, attempt: int, rank: int) -> Path:
    """Where the log of one rank lies."""
    return directory / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"


def read_piece(path: Path, *, offset: int = 0, tail: int | None = None) -> LogPiece:
    """Read from `offset`, or the last `tail` lines. Ends at a whole line where there is one.

    A piece never spans two files of a rotated log: ask again until the text is empty.

    Raises:
        NotFoundError: there is no such log.
    """
    try:
        with contextlib.ExitStack() as stack:
            parts = _opened(path, stack)
            return _read(parts, offset, tail)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no log {path.parent.name}/{path.name} yet") from error


class _Part(NamedTuple):
    """An open file of a log."""

    start: int
    size: int
    file: BinaryIO


def _opened(path: Path, stack: contextlib.ExitStack) -> list[_Part]:
    """Open all files of a log, oldest first.

    The agent may rotate the log meanwhile: then the list is made again.
    """
    for _ in range(_TRIES):
        older = older_parts(path)
        files = []
        with contextlib.suppress(FileNotFoundError):
            files = [stack.enter_context(each.path.open("rb")) for each in older]
            files.append(stack.enter_context(path.open("rb")))
        if len(files) == len(older) + 1 and older == older_parts(path):
            break
    else:
        raise FileNotFoundError(path)
    parts: list[_Part] = []
    starts = [each.start for each in older]
    for place, file in enumerate(files):
        size = os.fstat(file.fileno()).st_size
        before = parts[-1].start + parts[-1].size if parts else 0
        parts.append(_Part(starts[place] if place < len(starts) else before, size, file))
    return parts


def _read(parts: list[_Part], offset: int, tail: int | None) -> LogPiece:
    end = parts[-1].start + parts[-1].size
    start = min(offset, end) if tail is None else _tail_offset(parts, end, tail)
    # A place in a part that was deleted: the next one that is still there.
    part = next((p for p in parts if start < p.start + p.size), parts[-1])
    start = max(start, part.start)
    part.file.seek(start - part.start)
    raw = part.file.read(PIECE_BYTES)
    if len(raw) == PIECE_BYTES and b"\n" in raw:
        raw = raw[: raw.rindex(b"\n") + 1]
    raw = raw[: _whole_characters(raw)]
    return LogPiece(
        text=raw.decode(errors="replace"), offset=start, next_offset=start + len(raw), bytes=end
    )


def _tail_offset(parts: list[_Part], end: int, lines: int) -> int:
    """Where the last `lines` lines begin, at most `PIECE_BYTES` from the end."""
    newlines, floor = 0, max(0, end - PIECE_BYTES, parts[0].start)
    for part in reversed(parts):
        position = part.start + part.size
        while position > max(floor, part.start):
            begin = max(floor, part.start, position - _CHUNK)
            part.file.seek(begin - part.start)
            block = part.file.read(position - begin)
            for index in range(len(block) - 1, -1, -1):
                if block[index] != ord("\n") or begin + index == end - 1:
                    continue
                newlines += 1
                if newlines == lines:
                    return begin + index + 1
            position = begin
    return floor if lines > 0 else end


def _whole_characters(raw: bytes) -> int:
    """Length of `raw` without a UTF-8 character cut off at its end."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(raw) - back if needed > back else len(raw)
    return len(raw)
