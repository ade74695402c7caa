"""The log file of one rank: rotated, and tolerant of a disk that is full.

A write that fails costs its lines. The first write that succeeds again says how many are missing,
and why.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from jobs.log_files import LogLimit, end_of, older_parts, part_name


class LogFile:
    """Appends to a log; creates its directory."""

    def __init__(self, path: Path, limit: LogLimit) -> None:
        self._path = path
        self._limit = limit
        self._descriptor = -1
        self._size = 0
        self._start = 0
        self._lost = 0
        """Lines that could not be written."""
        self._why = ""
        self._torn = False
        """True if the last write was cut off in the middle of a line."""

    @property
    def why(self) -> str:
        """Why the last write failed; empty: it did not."""
        return self._why

    def write(self, data: bytes) -> None:
        """Append; what cannot be written is lost, and counted."""
        if self._lost and self._append(self._gap()):
            self._lost, self._why, self._torn = 0, "", False
        if self._lost or not self._append(data):
            self.lose(max(1, data.count(b"\n")), self._why)

    def lose(self, lines: int, why: str) -> None:
        """Count lines that are not written."""
        self._lost += lines
        self._why = why

    def close(self) -> None:
        """Say what is missing, if that can be written, and close."""
        if self._lost:
            self._append(self._gap())
        with contextlib.suppress(OSError):  # NFS tells here that earlier writes failed
            self._leave()

    def _leave(self) -> None:
        """Close the descriptor, which is gone even if that fails: another file may get its number.

        Raises:
            OSError: The file system reports late that an earlier write failed.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _gap(self) -> bytes:
        cut = "\n" if self._torn else ""
        return f"{cut}[babysit: {self._lost} lines are missing here: {self._why}]\n".encode()

    def _append(self, data: bytes) -> bool:
        """Write all of it. False: an error, which is in `why`; a part may have been written."""
        rest = data
        try:
            self._open()
            while rest:
                piece = self._next(rest)
                written = os.write(self._descriptor, piece)
                self._size += written
                rest = rest[written:]
        except OSError as error:
            self._why = error.strerror or str(error)
            self._torn = self._torn or len(rest) < len(data)
            # The next write opens the file by its name: this one may be stale (NFS) or deleted.
            with contextlib.suppress(OSError):
                self._leave()
            return False
        return True

    def _open(self) -> None:
        if self._descriptor < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._start = end_of(older_parts(self._path))
            self._create()

    def _next(self, data: bytes) -> bytes:
        """The piece that the current file takes, in whole lines; rotates if it takes none."""
        if self._size + len(data) <= self._limit.bytes:
            return data
        room = max(0, self._limit.bytes - self._size)
        lines = data.rfind(b"\n", 0, room) + 1
        if lines:
            return data[:lines]
        if self._size:
            self._rotate()
            return self._next(data)
        return data[:room]  # one line is longer than a file

    def _create(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        """Make the current file an older part, and delete the oldest beyond the limit."""
        self._path.rename(part_name(self._path, self._start))
        self._start += self._size
        self._leave()
        self._create()
        kept = self._limit.files - 1
        for old in older_parts(self._path)[:-kept]:
            with contextlib.suppress(OSError):
                old.path.unlink()
