"""Flight records of ranks: asked for by a pipe, read from the rank directory.

Reading is safe whatever a rank writes: only plain data, of limited size. A rank that does not
answer in time has no record; the looks at its stack stand for themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import structlog

from babysit import flight_record
from jobs.clock import Clock
from monitors.flight_recorder import FlightRecordError, GroupRecord, read

PATIENCE_SECONDS = 2.0
"""For the answer of a rank. A dump of 2,000 entries takes some 60 ms on one slow core."""
_POLL_SECONDS = 0.05


async def capture(
    directories: Mapping[int, Path], clock: Clock
) -> dict[int, tuple[GroupRecord, ...]]:
    """The flight records of several ranks, by rank; all ranks are asked at once."""
    ranks = sorted(directories)
    found = await asyncio.gather(*(take(directories[rank], clock) for rank in ranks))
    return dict(zip(ranks, found, strict=True))


async def take(directory: Path, clock: Clock) -> tuple[GroupRecord, ...]:
    """Have a rank dump its recorders, and read them. Never raises for the rank's sake.

    Empty: the rank has no recorder, or has not answered in time.
    """
    files = [directory / flight_record.RECORD_FILE.format(name) for name in flight_record.RECORDERS]
    done = directory / flight_record.DONE_FILE
    old, old_done = [_stamp(file) for file in files], _stamp(done)
    if not _ask(directory / flight_record.ASK_FILE):
        return ()
    ends = clock.monotonic() + PATIENCE_SECONDS
    while _stamp(done) == old_done:
        if clock.monotonic() >= ends:
            return ()
        await clock.sleep(_POLL_SECONDS)
    fresh = [file for file, before in zip(files, old, strict=True) if _stamp(file) != before]
    read_each = [await asyncio.to_thread(_read, file) for file in fresh]
    return tuple(record for records in read_each for record in records)


def _ask(pipe: Path) -> bool:
    """Write into the pipe of a rank; False: nobody reads it."""
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(descriptor, b"d") == 1
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _stamp(file: Path) -> tuple[int, int]:
    """Identity of a file's content; (0, 0): there is none."""
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_mtime_ns, status.st_ino
    return 0, 0


def _read(file: Path) -> tuple[GroupRecord, ...]:
    try:
        with file.open("rb") as opened:
            return read(opened.read(flight_record.MOST_BYTES + 1))
    except (OSError, FlightRecordError) as error:
        structlog.get_logger(part="flight_records").warning(
            "flight record left out", file=str(file), reason=str(error)
        )
        return ()
