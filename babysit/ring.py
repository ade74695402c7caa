"""The ring of samples in shared memory: one writer (a rank), one reader (its agent).

Layout (native little endian, 8-byte words): a header of `HEADER_BYTES`, the names of up to
`METRICS` metrics, `NAME_BYTES` each, then `capacity` records of `RECORD_BYTES`. A name is written
before the first record with its value. `written` counts all records; record i is in slot
`i % capacity`. The writer fills the slot first and then publishes `written`, so a reader that has
read up to `r` reads slots `r … written-1`. If it is more than `capacity` behind, the oldest records
are lost and the reader reports their number. A write takes no lock and no system call.

The header also has the seconds that the rank has spent by `babysit.wire.Part`, from `_PARTS` on: a
version that does not know them leaves them at 0, or reads past them.

Each word of the header is published by one aligned 8-byte store: `struct.pack_into` clears its
target first, so a reader would sometimes see a count of 0.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from babysit.wire import Part, Phase

_MAGIC = 0x42425333  # "BBS3"
_HEADER = struct.Struct("<IIIIQqqdq")
"""Magic, capacity, record bytes, pid, written, step, batch, beat, phase."""
HEADER_BYTES = 128
METRICS = 16
"""Most metrics of a rank by names of its own."""
NAME_BYTES = 64
_FIRST_RECORD = HEADER_BYTES + METRICS * NAME_BYTES
_RECORD = struct.Struct("<qqqqddddddd")
_VALUES = tuple(struct.Struct(f"<{count}d") for count in range(METRICS + 1))
RECORD_BYTES = _RECORD.size + METRICS * 8
CAPACITY = 4096
"""Records in the ring: at 20 steps/s the agent may pause for more than three minutes."""

_WRITTEN, _STEP, _BATCH, _BEAT, _PHASE = 2, 3, 4, 5, 6
"""Words of the header, by their place in it."""
_PARTS = 9
"""The first of the words with the seconds of each :class:`babysit.wire.Part`."""
_SECONDS = struct.Struct(f"<{len(Part)}d")
_CONTROL = struct.Struct("<i")
_CONTROL_OFFSET = 64
"""Offset of a word that the agent writes and the rank reads: 1 requests to save and stop."""
_HAS_LOSS = 1
_COUNT_SHIFT = 8
"""The word of flags also has the number of metrics, from this bit on."""

PHASES = tuple(Phase)
_INDEX = {phase: index for index, phase in enumerate(PHASES)}

wall_clock = time.time  # noqa: TID251  # no clock is passed into the user's process


class Record(NamedTuple):
    """One reported step. A NaN loss is stored as NaN; absent tokens are 0."""

    step: int
    batch: int
    """Number of the batch the step consumed, counted from 1 over the whole run."""
    time: float
    """Unix seconds at the end of the step."""
    loss: float | None
    """None: this rank has no loss for the step."""
    grad_norm: float
    """`-1.0` when not reported."""
    tokens: float
    seconds: float
    """Wall seconds since the previous report (the step time)."""
    blocked_seconds: float
    """Part of `seconds` in which a checkpoint blocked training."""
    learning_rate: float
    """`-1.0` when not reported."""
    expected_until: int = 0
    """Last step of a change that the script has announced; 0: none."""
    metrics: tuple[float, ...] = ()
    """Values of the named metrics, in order of their names; NaN: not in this report."""


class Progress(NamedTuple):
    """The changing part of the header, updated at every draw, phase change and report."""

    pid: int
    step: int
    """The last step that has ended."""
    batch: int
    beat: float
    """Unix seconds of the last sign of progress."""
    phase: Phase
    parts: tuple[float, ...] = ()
    """Seconds of this process by `Part`, until the end of a step; empty: not measured."""


class RingWriter:
    """The rank's end.

    An existing ring is continued, since the previous process may have left records that the agent
    has not read yet.

    Raises:
        OSError: The file cannot be created (for example on a full tmpfs).
    """

    def __init__(self, path: str | Path, capacity: int = CAPACITY) -> None:
        size = _FIRST_RECORD + capacity * RECORD_BYTES
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Reserve the pages now: on a full tmpfs, the first write to a page would be a SIGBUS.
            os.posix_fallocate(descriptor, 0, size)
            os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        words = memoryview(self._map)[:HEADER_BYTES]
        self._counts, self._times = words.cast("q"), words.cast("d")
        self._capacity = capacity
        before = _HEADER.unpack_from(self._map, 0)
        self._written = before[4] if before[:3] == (_MAGIC, capacity, RECORD_BYTES) else 0
        header = (_MAGIC, capacity, RECORD_BYTES, os.getpid(), self._written)
        _HEADER.pack_into(self._map, 0, *header, 0, 0, wall_clock(), 0)
        self.parts((0.0,) * len(Part))

    def write(self, record: Record) -> None:
        """Append one record and publish it. Takes microseconds and never blocks."""
        slot = _FIRST_RECORD + (self._written % self._capacity) * RECORD_BYTES
        step, batch, at, loss, norm, tokens, seconds, blocked, rate, until, metrics = record
        flags = 0 if loss is None else _HAS_LOSS
        number = float("nan") if loss is None else loss
        if metrics:
            flags |= len(metrics) << _COUNT_SHIFT
            _VALUES[len(metrics)].pack_into(self._map, slot + _RECORD.size, *metrics)
        _RECORD.pack_into(
            self._map,
            slot,
            step,
            batch,
            flags,
            until,
            at,
            number,
            norm,
            tokens,
            seconds,
            blocked,
            rate,
        )
        self._written += 1
        self._counts[_WRITTEN] = self._written

    def names(self) -> list[str]:
        """The names of the metrics so far, by their place: those of a previous process too."""
        return _names(self._map)

    def name(self, place: int, name: str) -> None:
        """Name a metric, before the first record with its value.

        A name is cut to what fits in `NAME_BYTES`.
        """
        encoded = name.encode()[: NAME_BYTES - 1].decode(errors="ignore").encode()
        start = HEADER_BYTES + place * NAME_BYTES
        self._map[start : start + NAME_BYTES] = encoded.ljust(NAME_BYTES, b"\0")

    def progress(self, step: int, batch: int, beat: float, phase: Phase) -> None:
        """Publish the rank's progress."""
        counts = self._counts
        counts[_STEP], counts[_BATCH], counts[_PHASE] = step, batch, _INDEX[phase]
        self._times[_BEAT] = beat

    def parts(self, seconds: Sequence[float]) -> None:
        """Publish the seconds of each `Part` so far, just before the end of a step."""
        words = self._times
        for place, spent in enumerate(seconds, _PARTS):
            words[place] = spent

    @property
    def stop_requested(self) -> bool:
        """True if the agent requested the rank to save and stop."""
        return bool(_CONTROL.unpack_from(self._map, _CONTROL_OFFSET)[0])


class RingVersionError(ValueError):
    """Another version of babysit wrote the ring."""


class RingReader:
    """The agent's end.

    Raises:
        ValueError: The header is incomplete.
        RingVersionError: Another version of babysit wrote it.
        OSError: The file cannot be opened or mapped.
    """

    def __init__(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        magic, self._capacity, record_bytes, *_ = _HEADER.unpack_from(self._map, 0)
        if magic == 0:  # the file is there, and its header is about to be written
            raise ValueError(f"{path} has no header yet")
        if magic != _MAGIC or record_bytes != RECORD_BYTES:
            raise RingVersionError(f"{path} is not a ring of this version of babysit")
        self._read = 0

    def drain(self, limit: int = 1024) -> tuple[list[Record], int]:
        """Read the records written since the last call.

        Args:
            limit: Maximum number of records to return.

        Returns:
            The records, oldest first, and how many were overwritten unread.
        """
        written = self._published()
        lost = max(0, written + 1 - self._capacity - self._read)
        self._read += lost
        end = min(written, self._read + limit)
        records = [self._record(i) for i in range(self._read, end)]
        # The writer may have overwritten these during the read (one slot may be half written).
        torn = min(
            len(records),
            max(0, self._published() + 1 - self._capacity - self._read),
        )
        self._read = max(self._read, end)  # never back: a record is handed out once
        return records[torn:], lost + torn

    def _record(self, number: int) -> Record:
        slot = _FIRST_RECORD + number % self._capacity * RECORD_BYTES
        step, batch, flags, until, at, loss, *rest = _RECORD.unpack_from(self._map, slot)
        metrics = _VALUES[min(flags >> _COUNT_SHIFT, METRICS)].unpack_from(
            self._map, slot + _RECORD.size
        )
        norm, tokens, seconds, blocked, rate = rest
        known = loss if flags & _HAS_LOSS else None
        return Record(step, batch, at, known, norm, tokens, seconds, blocked, rate, until, metrics)

    def names(self) -> list[str]:
        """The names of the metrics so far, by their place."""
        return _names(self._map)

    def _published(self) -> int:
        return int(_HEADER.unpack_from(self._map, 0)[4])

    def progress(self) -> Progress:
        """The rank's current progress."""
        _, _, _, pid, _, step, batch, beat, phase = _HEADER.unpack_from(self._map, 0)
        seconds = _SECONDS.unpack_from(self._map, 8 * _PARTS)
        return Progress(pid, step, batch, beat, PHASES[phase], seconds if any(seconds) else ())

    def request_stop(self) -> None:
        """Request the rank to save and stop; it sees this at its next `run.should_stop`."""
        _CONTROL.pack_into(self._map, _CONTROL_OFFSET, 1)

    def close(self) -> None:
        """Unmap the ring."""
        self._map.close()


def _names(ring: mmap.mmap) -> list[str]:
    starts = range(HEADER_BYTES, _FIRST_RECORD, NAME_BYTES)
    raw = [ring[start : start + NAME_BYTES].rstrip(b"\0") for start in starts]
    return [name.decode(errors="replace") for name in raw if name]
