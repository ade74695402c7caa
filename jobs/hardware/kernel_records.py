"""Records of the kernel's log: from /dev/kmsg, or from a captured text.

A captured text may be that of /dev/kmsg itself, of `dmesg` (with or without `-r` or `-x`), of
`journalctl -k -o short-iso`, or of a syslog file with the kernel's own stamps. Local times without
a zone (`dmesg -T`) are not read: nobody knows the zone that they were written in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

_KMSG = re.compile(r"(\d+),(\d+),(\d+),[^;]*;(.*)", re.DOTALL)
_STAMPED = re.compile(
    r"(?:<(?P<raw>\d+)>|(?P<facility>[a-z]+\d?)\s*:(?P<level>[a-z]+)\s*:\s*)?"
    r"\[\s*(?P<seconds>\d+\.\d+)\]\s?(?:\[\s*[TC]\d+\]\s?)?(?P<text>.*)"
)
_ISO = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d))"
    r"\s+\S+\s+kernel:\s(?P<text>.*)"
)
_SYSLOG = re.compile(r".*?\bkernel:\s+(?=\[\s*\d+\.\d+\])")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
_RECORD_BYTES = 16384
"""The kernel's records have 8,192 bytes at most (PRINTK_MESSAGE_MAX); a shorter buffer: EINVAL."""
KERNEL = 0
"""The facility that only the kernel can log with: what user space writes to /dev/kmsg gets another
one (Documentation/ABI/testing/dev-kmsg). So no process can write a line of its own as the kernel.
The names of programs that the kernel's lines repeat: :mod:`monitors.hardware.kernel_lines`."""
INFO = 6


class Record(NamedTuple):
    """One message of the kernel's log."""

    text: str
    sequence: int | None = None
    """Number since boot; None: the text has none."""
    facility: int = KERNEL
    level: int = INFO
    """0 (emergency) to 7 (debug)."""
    since_boot: float | None = None
    """Seconds on printk's clock, which stands while the machine is suspended; None: unknown."""
    unix: float | None = None
    """Unix seconds, where the text has a time of day; None: it has none."""


def parse(text: str) -> Record | None:
    """A record from its text, with its prefix; None: nothing that is known.

    A record of /dev/kmsg may be followed by lines with a blank in front, which describe its device.
    """
    if found := _KMSG.match(text):
        priority, sequence, microseconds, message = found.groups()
        return Record(
            text=_plain(message.partition("\n")[0]),
            sequence=int(sequence),
            facility=int(priority) >> 3,
            level=int(priority) & 7,
            since_boot=int(microseconds) / 1e6,
        )
    line = _SYSLOG.sub("", text, count=1)
    if found := _STAMPED.fullmatch(line):
        facility, level = _priority(found)
        since = float(found["seconds"])
        return Record(found["text"], facility=facility, level=level, since_boot=since)
    if found := _ISO.fullmatch(line):
        with contextlib.suppress(ValueError):
            time = dt.datetime.fromisoformat(found["time"].replace(",", ".")).timestamp()
            return Record(found["text"], unix=time)
    return None


def _priority(found: re.Match[str]) -> tuple[int, int]:
    """Facility and level of a line of `dmesg -r` or `dmesg -x`."""
    if found["raw"]:
        return int(found["raw"]) >> 3, int(found["raw"]) & 7
    if found["level"]:
        level = _LEVELS.index(found["level"]) if found["level"] in _LEVELS else INFO
        return (KERNEL if found["facility"] == "kern" else 1), level
    return KERNEL, INFO


def _plain(text: str) -> str:
    """The message without the escapes of /dev/kmsg, on one line."""
    if "\\x" not in text:
        return text
    raw = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text).encode("latin-1", "replace")
    return " ".join(raw.decode(errors="replace").splitlines())


class Records(Protocol):
    """Where the kernel's log is read from. Records come once, oldest first."""

    def take(self, most: int) -> list[Record]:
        """The records that are new, at most `most` of them. Never waits for one.

        Raises:
            OSError: It cannot be opened or read; PermissionError: the caller may not.
        """

    def booted(self, now: float) -> float:
        """Unix seconds at which the clock of printk was 0."""


class Kmsg:
    """The log of the running kernel.

    Args:
        path: /dev/kmsg.
        monotonic: Seconds since boot (CLOCK_MONOTONIC), for the times of records.
    """

    def __init__(self, path: Path, monotonic: Callable[[], float]) -> None:
        self._path, self._monotonic = path, monotonic
        self._file: int | None = None

    def take(self, most: int) -> list[Record]:
        """See the protocol. The first call begins with the oldest record that the kernel has."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found: list[Record] = []
        while len(found) < most:
            try:
                data = os.read(self._file, _RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten; the next read goes on behind them
                continue
            if not data:
                break
            if record := parse(data.decode(errors="replace")):
                found.append(record)
        return found

    def booted(self, now: float) -> float:
        """See the protocol. printk's clock lacks what NTP slews: seconds after a week."""
        return now - self._monotonic()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@dataclasses.dataclass(slots=True)
class CapturedLog:
    """A captured log: a file of text, which may grow."""

    path: Path
    boot_time: float = 0.0
    """Unix seconds at which the machine that it comes from was started."""
    _offset: int = 0

    def take(self, most: int) -> list[Record]:
        """See the protocol. Lines without a stamp are skipped."""
        found: list[Record] = []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while len(found) < most and (line := file.readline()).endswith(b"\n"):
                self._offset += len(line)
                if record := parse(line.decode(errors="replace").rstrip("\r\n")):
                    found.append(record)
        return found

    def booted(self, now: float) -> float:
        """See the protocol."""
        del now
        return self.boot_time
