"""Reads a rank's log, a piece at a time, from the files on disk or from parts kept elsewhere.

The server reads the logs of its own disk by this, and an agent those of its node.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import BaseModel

from jobs.log_files import older_parts

_CHUNK = 65536
PIECE_BYTES = 1_000_000
"""Most bytes of one answer, and of what the last lines of a log may take."""
_TRIES = 5
"""A log is rotated every few megabytes: two rotations during one look are unlikely."""


class LogPiece(BaseModel):
    """A part of a log. Ask again with `offset=next_offset` for what came after it."""

    text: str
    """Empty at the end of the log. States of a progress bar are parted by carriage returns."""
    offset: int
    """Where the text begins; later than asked for if older parts of the log were deleted."""
    next_offset: int
    bytes: int
    """Size of the whole log now, with the parts that were deleted."""


class OpenPart(NamedTuple):
    """An open file of a log."""

    start: int
    """Place of its first byte in the whole log."""
    size: int
    file: BinaryIO


def read_piece(
    path: Path, *, offset: int = 0, tail: int | None = None, most: int = PIECE_BYTES
) -> LogPiece:
    """Read from `offset`, or the last `tail` lines. Ends at a whole line where there is one.

    A piece never spans two files of a rotated log: ask again until the text is empty.

    Raises:
        FileNotFoundError: There is no such log.
    """
    with contextlib.ExitStack() as stack:
        return piece_of(opened(path, stack), offset=offset, tail=tail, most=most)


def read_range(path: Path, start: int, end: int) -> tuple[int, bytes]:
    """Bytes of a log between two places, and the place of the first of them.

    They begin later than `start` if older parts of the log were deleted, and end earlier than `end`
    at the end of the log.

    Raises:
        FileNotFoundError: There is no such log.
    """
    found: list[bytes] = []
    first = start
    with contextlib.ExitStack() as stack:
        for part in opened(path, stack):
            if part.start + part.size <= start or part.start >= end:
                continue
            first = first if found else max(first, part.start)
            part.file.seek(max(start, part.start) - part.start)
            found.append(part.file.read(min(end, part.start + part.size) - max(start, part.start)))
    return first, b"".join(found)


def opened(path: Path, stack: contextlib.ExitStack) -> list[OpenPart]:
    """Open all files of a log, oldest first.

    The agent may rotate the log meanwhile: then the list is made again.

    Raises:
        FileNotFoundError: There is no such log.
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
    parts: list[OpenPart] = []
    starts = [each.start for each in older]
    for place, file in enumerate(files):
        size = os.fstat(file.fileno()).st_size
        before = parts[-1].start + parts[-1].size if parts else 0
        parts.append(OpenPart(starts[place] if place < len(starts) else before, size, file))
    return parts


def piece_of(
    parts: Sequence[OpenPart],
    *,
    offset: int = 0,
    tail: int | None = None,
    most: int = PIECE_BYTES,
) -> LogPiece:
    """Read from the parts of a log, oldest first and at least one, as :func:`read_piece` does."""
    end = parts[-1].start + parts[-1].size
    start = min(offset, end) if tail is None else _tail_offset(parts, end, tail)
    # A place in a part that was deleted: the next one that is still there.
    part = next((p for p in parts if start < p.start + p.size), parts[-1])
    start = max(start, part.start)
    part.file.seek(start - part.start)
    raw = part.file.read(most)
    if len(raw) == most and b"\n" in raw:
        raw = raw[: raw.rindex(b"\n") + 1]
    raw = raw[: _whole_characters(raw)]
    return LogPiece(
        text=raw.decode(errors="replace"), offset=start, next_offset=start + len(raw), bytes=end
    )


def _tail_offset(parts: Sequence[OpenPart], end: int, lines: int) -> int:
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
