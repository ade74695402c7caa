"""Fingerprints in shared memory: one writer (a rank), one reader (its agent).

A file of its own beside the ring of samples, so that an agent or a rank of another version simply
does not use it. Layout: the number of all fingerprints written (8 bytes, native), then `CAPACITY`
slots of `SLOT_BYTES`: the length of a line of JSON (4 bytes, little endian), and the line. A slot
is filled before the number is published. The oldest fingerprints are overwritten, read or not.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

FILE = "fingerprints"
CAPACITY = 128
SLOT_BYTES = 2048
"""Room for the digests of about 40 parts."""
_HEADER_BYTES = 64
_LENGTH = struct.Struct("<I")
_SIZE = _HEADER_BYTES + CAPACITY * SLOT_BYTES


class FingerprintWriter:
    """The rank's end.

    Raises:
        OSError: The file cannot be created (for example on a full tmpfs).
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)  # else a write on a full tmpfs is a SIGBUS
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._count = memoryview(self._map)[:8].cast("q")

    def write(self, line: bytes) -> None:
        """Append a fingerprint.

        Raises:
            ValueError: It does not fit in a slot.
        """
        if len(line) > SLOT_BYTES - _LENGTH.size:
            raise ValueError(f"{len(line)} bytes of digests; a slot has {SLOT_BYTES - 4}")
        start = _HEADER_BYTES + self._count[0] % CAPACITY * SLOT_BYTES
        _LENGTH.pack_into(self._map, start, len(line))
        begin = start + _LENGTH.size
        self._map[begin : begin + len(line)] = line
        self._count[0] += 1


class FingerprintReader:
    """The agent's end.

    Raises:
        OSError: The file is not there (yet).
        ValueError: It is not whole (yet).
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE, access=mmap.ACCESS_READ)
        self._read = 0

    def drain(self) -> list[bytes]:
        """The lines written since the last call, the oldest first; overwritten ones are missed."""
        end = self._published()
        lines = {number: self._line(number) for number in range(self._read, end)[-CAPACITY:]}
        self._read = end
        safe = self._published() + 1 - CAPACITY  # older slots may be half overwritten by now
        return [line for number, line in lines.items() if number >= safe and line]

    def _published(self) -> int:
        return int.from_bytes(self._map[:8], "little")

    def _line(self, number: int) -> bytes:
        start = _HEADER_BYTES + number % CAPACITY * SLOT_BYTES
        (length,) = _LENGTH.unpack_from(self._map, start)
        begin = start + _LENGTH.size
        return bytes(self._map[begin : begin + min(length, SLOT_BYTES - _LENGTH.size)])

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()
