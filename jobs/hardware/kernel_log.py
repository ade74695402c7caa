"""The kernel's log as a source: the machine's own word on what has happened to it.

The problem: the log holds what counts (Xid, machine checks, OOM kills, a file system that became
read-only) among much else, it is a ring that overwrites its oldest records, and it outlives the
program that reads it.

The design: only records of the kernel's own facility are read, since every process that may write
to /dev/kmsg can write what it likes there, but not as the kernel. A cursor (boot id and number of
the last record) says where to go on after a restart of the reader; a reader without one begins a
short time before now, since an old fault has been seen by somebody, or shows again. Records that
were overwritten unread are counted.

Limits: levels above `most_level` are skipped. A flood is cut: what is beyond `most_lines` of one
look is counted as lost, the least severe first.
"""

from __future__ import annotations

from typing import NamedTuple

from jobs.hardware.kernel_records import KERNEL, Record, Records
from jobs.hardware.port import Readings, Seen
from monitors.hardware.types import LogLine

_MOST_RECORDS = 20_000
"""Records of one look: more than a ring of 1 MiB has."""
_LINE_CHARACTERS = 2000


class Cursor(NamedTuple):
    """How far a log was read."""

    boot: str
    sequence: int


class KernelLog:
    """Reads the kernel's log.

    Args:
        records: Where from.
        boot: Id of this start of the machine.
        cursor: How far it was read before; None: never.
        backlog_seconds: How far back a reader without a cursor begins.
        most_level: Highest level that is read: 6 leaves out debug messages.
        most_lines: Lines of one look.
    """

    name = "kernel_log"

    def __init__(
        self,
        records: Records,
        boot: str = "",
        cursor: Cursor | None = None,
        *,
        backlog_seconds: float = 600.0,
        most_level: int = 6,
        most_lines: int = 1000,
    ) -> None:
        self._records, self._boot = records, boot
        known = cursor is not None and cursor.boot == boot
        self._last = cursor.sequence if cursor is not None and known else -1
        self._backlog = None if known else backlog_seconds
        self._most_level, self._most_lines = most_level, most_lines
        self._lost = 0

    @property
    def cursor(self) -> Cursor:
        """How far the log has been read."""
        return Cursor(self._boot, self._last)

    def read(self, now: float) -> Seen:
        """See the port."""
        try:
            records = self._records.take(_MOST_RECORDS)
        except PermissionError:
            return Seen(
                blind="no permission for /dev/kmsg: run as root, or with the capability SYSLOG"
            )
        except FileNotFoundError as error:
            return Seen(blind=f"{error.filename} is missing: mount the host's into the container")
        new = [record for record in records if self._is_new(record)]
        booted = self._records.booted(now)
        stamped = [(self._time(record, booted, now), record) for record in new]
        if self._backlog is not None:
            oldest = now - self._backlog
            stamped = [(time, record) for time, record in stamped if time >= oldest]
            self._backlog = None
        mine = [(t, r) for t, r in stamped if r.facility == KERNEL and r.level <= self._most_level]
        readings = Readings(self.name, now)
        kept = self._most_severe(mine)
        readings.add("", "lines_lost_total", self._lost)
        lines = tuple(LogLine(text=r.text[:_LINE_CHARACTERS], time=t) for t, r in kept if r.text)
        return Seen(readings=readings.seen().readings, lines=lines)

    def _is_new(self, record: Record) -> bool:
        """True for a record that was not read before; counts those that are missing before it."""
        if record.sequence is None:  # a text without numbers, which comes once anyway
            return True
        if record.sequence <= self._last:
            return False
        if self._last >= 0:
            self._lost += record.sequence - self._last - 1
        self._last = record.sequence
        return True

    @staticmethod
    def _time(record: Record, booted: float, now: float) -> float:
        """Unix seconds of a record. None lies in the future, whatever the clocks say."""
        if record.unix is not None:
            return record.unix
        return now if record.since_boot is None else min(now, booted + record.since_boot)

    def _most_severe(self, found: list[tuple[float, Record]]) -> list[tuple[float, Record]]:
        """The lines that fit in one look, in their order."""
        if len(found) <= self._most_lines:
            return found
        order = sorted(range(len(found)), key=lambda index: (found[index][1].level, index))
        self._lost += len(found) - self._most_lines
        return [found[index] for index in sorted(order[: self._most_lines])]
