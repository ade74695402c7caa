"""Reports on disk until the control plane has stored them.

File: the number of its first frame and the last acknowledged number (8 bytes each, little endian),
then frames: number (8 bytes), length (4 bytes), content. Nothing is synced: the spool survives a
crash of the agent but not of the node, whose ranks would be lost as well.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from jobs.agent.errors import SpoolError

LIMIT_BYTES = 256 * 2**20
"""About a day at 2 ranks and 20 steps/s; beyond it samples are dropped, but never events."""
_COMPACT_BYTES = 16 * 2**20
_BASE = struct.Struct("<QQ")
_HEAD = struct.Struct("<QI")


class _Entry(NamedTuple):
    sequence: int
    offset: int
    """Offset of the content in the file."""
    length: int
    held: bytes | None = None
    """The content itself if it could not be written; None: it is in the file."""


class Spool:
    """Numbered frames, oldest first. An existing file is continued.

    Raises:
        SpoolError: The file is damaged.
        OSError: The file cannot be opened or created.
    """

    def __init__(self, path: Path, limit: int = LIMIT_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._limit = limit
        self._entries: deque[_Entry] = deque()
        self._why = ""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._end = 0
        self._begin = 1
        """Number of the first frame in the file."""
        self.next_sequence = 1
        """Number of the next frame."""
        self._load()

    @property
    def first_sequence(self) -> int:
        """Number of the oldest stored frame, or of the next one if there is none."""
        return self._entries[0].sequence if self._entries else self.next_sequence

    @property
    def full(self) -> bool:
        """True if the limit is reached or the disk is full; the caller then drops samples."""
        if not self._entries:
            return False
        written = self._end - self._entries[0].offset
        return self._entries[-1].held is not None or written >= self._limit

    @property
    def trouble(self) -> str:
        """Why reports are kept in memory; empty: they are not."""
        return self._why if self._entries and self._entries[-1].held is not None else ""

    def append(self, frame: bytes) -> int:
        """Append a frame; returns its number. A full disk keeps the frame in memory."""
        sequence = self.next_sequence
        entry = _Entry(sequence, self._end + _HEAD.size, len(frame))
        held = bool(self._entries) and self._entries[-1].held is not None
        try:
            if not held:  # otherwise the file would have a gap
                self._write(self._file, _HEAD.pack(sequence, len(frame)) + frame, self._end)
                self._end += _HEAD.size + len(frame)
        except OSError as error:
            held, self._why = True, error.strerror or str(error)
            log = structlog.get_logger(part="spool")
            log.warning(
                "cannot write to the spool, keeping reports in memory until sent", reason=str(error)
            )
        self._entries.append(entry._replace(held=frame) if held else entry)
        self.next_sequence = sequence + 1
        return sequence

    def after(self, sequence: int) -> Iterator[tuple[int, bytes]]:
        """Yield frames with higher numbers in order, including those appended meanwhile."""
        while True:
            behind = self.next_sequence - 1 - sequence
            if behind <= 0 or not self._entries:
                return
            entry = self._entries[max(0, len(self._entries) - behind)]
            yield entry.sequence, self._content(entry)
            sequence = entry.sequence

    def acknowledge(self, sequence: int) -> None:
        """Delete all frames up to this number."""
        while self._entries and self._entries[0].sequence <= sequence:
            self._entries.popleft()
        self.next_sequence = max(self.next_sequence, sequence + 1)
        if not self._entries:
            self._reset()
            return
        with contextlib.suppress(OSError):  # frames that are sent twice are taken once
            self._write(self._file, _BASE.pack(self._begin, self._entries[0].sequence - 1), 0)
        spent = self._entries[0].offset - _HEAD.size
        if spent > max(_COMPACT_BYTES, self._end // 2) and self._entries[-1].held is None:
            with contextlib.suppress(OSError):  # no space for a copy: keep the file
                self._compact(spent)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _reset(self) -> None:
        self._begin = self.next_sequence
        with contextlib.suppress(OSError):  # as above; the truncation makes room
            self._write(self._file, _BASE.pack(self._begin, self._begin - 1), 0)
        os.ftruncate(self._file, _BASE.size)
        self._end = _BASE.size

    def _compact(self, spent: int) -> None:
        """Copy the remaining frames to a new file that replaces the old one atomically."""
        fresh = self._path.with_suffix(".new")
        begin = self._entries[0].sequence
        shift = spent - _BASE.size
        copy = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._write(copy, _BASE.pack(begin, begin - 1), 0)
            for entry in self._entries:
                frame = _HEAD.pack(entry.sequence, entry.length) + self._content(entry)
                self._write(copy, frame, entry.offset - _HEAD.size - shift)
            fresh.replace(self._path)
        except OSError:
            os.close(copy)
            raise
        os.close(self._file)
        self._file, self._begin = copy, begin
        self._entries = deque(e._replace(offset=e.offset - shift) for e in self._entries)
        self._end -= shift

    def _load(self) -> None:
        size = os.fstat(self._file).st_size
        if size < _BASE.size:
            self._reset()
            return
        self._begin, acknowledged = _BASE.unpack(os.pread(self._file, _BASE.size, 0))
        self.next_sequence = self._begin
        self._end = _BASE.size
        while self._end + _HEAD.size <= size:
            sequence, length = _HEAD.unpack(os.pread(self._file, _HEAD.size, self._end))
            content = self._end + _HEAD.size
            if content + length > size:  # the agent died while writing this frame
                break
            if sequence != self.next_sequence:
                raise SpoolError(
                    f"{self._path}: expected frame {self.next_sequence}, found {sequence}; "
                    "the spool is damaged, move the file away"
                )
            self._entries.append(_Entry(sequence, content, length))
            self.next_sequence = sequence + 1
            self._end = content + length
        os.ftruncate(self._file, self._end)
        self.acknowledge(acknowledged)

    def _content(self, entry: _Entry) -> bytes:
        if entry.held is not None:
            return entry.held
        return os.pread(self._file, entry.length, entry.offset)

    @staticmethod
    def _write(descriptor: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
