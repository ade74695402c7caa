"""The ring of samples in shared memory: one writer (a rank), one reader (its agent).

Layout (little endian): a header of `HEADER_BYTES`, then `capacity` records of `RECORD_BYTES`.
`written` counts records ever written; record i lies in slot `i % capacity`. The writer fills the
slot first and then publishes `written`, so a reader that has read up to `r` takes slots
`r … written-1`; when more than `capacity` behind, the oldest are gone and the reader says how many.
Writing takes no lock and no system call.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from babysit.wire import Phase

_MAGIC = 0x42425331  # "BBS1"
_HEADER = struct.Struct("<IIIIQqqdi")
"""Magic, capacity, record bytes, pid, written, step, batch, beat, phase."""
HEADER_BYTES = 128
_RECORD = struct.Struct("<qqddddddd")
RECORD_BYTES = _RECORD.size
CAPACITY = 4096
"""Records kept: at 20 steps/s an agent may be away for more than three minutes."""

_WRITTEN = struct.Struct("<Q")
_WRITTEN_OFFSET = 16
_PROGRESS = struct.Struct("<qqdi")  # step, batch, beat, phase
_PROGRESS_OFFSET = 24
_CONTROL = struct.Struct("<i")
_CONTROL_OFFSET = 64
"""A word the agent writes and the rank reads: 1 asks the rank to save and leave."""

PHASES = tuple(Phase)
_INDEX = {phase: index for index, phase in enumerate(PHASES)}

wall_clock = time.time  # noqa: TID251  # in the user's process nobody hands us a clock


class Record(NamedTuple):
    """One reported step. A NaN loss is a real NaN; absent tokens are 0."""

    step: int
    batch: int
    """Number of the batch the step consumed, counted from 1 over the whole run."""
    time: float
    """Unix seconds at the end of the step."""
    loss: float
    grad_norm: float
    """`-1.0` when not reported."""
    tokens: float
    seconds: float
    """Wall seconds since the previous report (the step time)."""
    blocked_seconds: float
    """Part of `seconds` in which a checkpoint blocked training."""
    learning_rate: float
    """`-1.0` when not reported."""


class Progress(NamedTuple):
    """The header's live part, updated at every phase change and report."""

    pid: int
    step: int
    batch: int
    beat: float
    """Unix seconds of the last sign of progress."""
    phase: Phase


class RingWriter:
    """The rank's end. Creates the file; raises OSError where it cannot (a full tmpfs, say)."""

    def __init__(self, path: str | Path, capacity: int = CAPACITY) -> None:
        size = HEADER_BYTES + capacity * RECORD_BYTES
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Pages are reserved now: touching one that a full tmpfs cannot give is a SIGBUS later.
            os.posix_fallocate(descriptor, 0, size)
            os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._capacity = capacity
        self._written = 0
        now = wall_clock()
        _HEADER.pack_into(
            self._map, 0, _MAGIC, capacity, RECORD_BYTES, os.getpid(), 0, 0, 0, now, 0
        )

    def write(self, record: Record) -> None:
        """Append one record and publish it. Microseconds; never blocks."""
        slot = HEADER_BYTES + (self._written % self._capacity) * RECORD_BYTES
        _RECORD.pack_into(self._map, slot, *record)
        self._written += 1
        _WRITTEN.pack_into(self._map, _WRITTEN_OFFSET, self._written)

    def progress(self, step: int, batch: int, beat: float, phase: Phase) -> None:
        """Publish where the rank is."""
        _PROGRESS.pack_into(self._map, _PROGRESS_OFFSET, step, batch, beat, _INDEX[phase])

    @property
    def asked_to_stop(self) -> bool:
        """Whether the agent asked the rank to save and leave."""
        return bool(_CONTROL.unpack_from(self._map, _CONTROL_OFFSET)[0])


class RingReader:
    """The agent's end."""

    def __init__(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        magic, self._capacity, record_bytes, *_ = _HEADER.unpack_from(self._map, 0)
        if magic != _MAGIC or record_bytes != RECORD_BYTES:
            raise ValueError(f"{path} is no ring of this version of babysit")
        self._read = 0

    def drain(self, limit: int = 1024) -> tuple[list[Record], int]:
        """Take what was written since the last call.

        Args:
            limit: Most records to return.

        Returns:
            The records, oldest first, and how many were overwritten unread.
        """
        written = self._published()
        lost = max(0, written + 1 - self._capacity - self._read)
        self._read += lost
        end = min(written, self._read + limit)
        records = [
            Record(
                *_RECORD.unpack_from(self._map, HEADER_BYTES + i % self._capacity * RECORD_BYTES)
            )
            for i in range(self._read, end)
        ]
        # What the writer may have overwritten while it was being read (one slot is in the making).
        torn = min(
            len(records),
            max(0, self._published() + 1 - self._capacity - self._read),
        )
        self._read = end
        return records[torn:], lost + torn

    def _published(self) -> int:
        return int(_WRITTEN.unpack_from(self._map, _WRITTEN_OFFSET)[0])

    def progress(self) -> Progress:
        """Where the rank is now."""
        _, _, _, pid, _, step, batch, beat, phase = _HEADER.unpack_from(self._map, 0)
        return Progress(pid, step, batch, beat, PHASES[phase])

    def ask_to_stop(self) -> None:
        """Ask the rank to save and leave at its next look at `run.should_stop`."""
        _CONTROL.pack_into(self._map, _CONTROL_OFFSET, 1)

    def close(self) -> None:
        """Unmap the ring."""
        self._map.close()
