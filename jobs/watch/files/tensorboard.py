"""Scalars in TensorBoard's event files. Pure.

A file is a sequence of records: the length (8 bytes), a checksum of the length, the data, and a
checksum of the data. The data is an `Event` of protobuf. Sources:
`tensorflow/core/lib/io/record_writer.h`, and `event.proto`, `summary.proto` and `tensor.proto` in
`tensorboard/compat/proto/`.

The checksum of the length is verified: behind a length that is wrong nothing can be found. That of
the data is not, since Python takes seconds for a large record; a file that is being written may end
in the middle of a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from jobs.watch.files.protobuf import WireError, decimal, fields, signed
from jobs.watch.files.rows import Row

LARGEST = 1 << 20
"""Bytes of a record that is looked at: those of images, graphs and audio are passed over."""
_HEAD = struct.Struct("<QI")
_TAIL = 4
_POLYNOMIAL = 0x82F63B78
_FLOAT_TYPE, _DOUBLE_TYPE = 1, 2


class EventDecoder:
    """Decodes one file."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skip = 0
        """Bytes of a large record that are still to come."""
        self.trouble = ""
        """Why nothing more can be read; empty: nothing is wrong."""

    def feed(self, data: bytes) -> list[Row]:
        """Take bytes as they were appended; returns the rows of the records that they complete."""
        if self.trouble:
            return []
        gone = min(self._skip, len(data))
        self._skip -= gone
        self._rest += data[gone:]
        rows: list[Row] = []
        place = 0
        while not self._skip and len(self._rest) - place >= _HEAD.size:
            length, check = _HEAD.unpack_from(self._rest, place)
            if masked_checksum(bytes(self._rest[place : place + 8])) != check:
                self.trouble = "a record has a wrong length: not an event file, or a damaged one"
                return rows
            end = place + _HEAD.size + length + _TAIL
            if length > LARGEST:
                self._skip = max(0, end - len(self._rest))
                place = min(end, len(self._rest))
            elif end > len(self._rest):
                break
            else:
                rows += _rows(bytes(self._rest[place + _HEAD.size : end - _TAIL]))
                place = end
        del self._rest[:place]
        return rows


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


_TABLE = _table()


def masked_checksum(data: bytes) -> int:
    """CRC-32C (Castagnoli) as records have it: rotated by 15 bits, with a constant added."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _rows(event: bytes) -> list[Row]:
    """The row of an event; none if it has no scalar."""
    time, step, summary = None, 0, b""
    try:
        for number, value in fields(event):
            if number == 1 and isinstance(value, bytes):
                time = decimal(value)
            elif number == 2 and isinstance(value, int):
                step = signed(value)
            elif number == 5 and isinstance(value, bytes):
                summary = value
        scalars = dict(_scalars(summary))
    except WireError:
        return []
    return [Row(scalars, step, time)] if scalars else []


def _scalars(summary: bytes) -> Iterator[tuple[str, float]]:
    for number, value in fields(summary):
        if number != 1 or not isinstance(value, bytes):
            continue
        tag, scalar = "", None
        for part, content in fields(value):
            if not isinstance(content, bytes):
                continue
            if part == 1:
                tag = content.decode(errors="replace")
            elif part == 2:
                scalar = decimal(content)
            elif part == 8:
                scalar = _of_tensor(content)
        if scalar is not None:
            yield tag, scalar


def _of_tensor(tensor: bytes) -> float | None:
    """The number in a tensor of one float, as TensorFlow 2 writes scalars; None: it has more."""
    kind, found = 0, []
    for number, value in fields(tensor):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in {4, 5, 6} and isinstance(value, bytes):
            found.append(value)
    size = {_FLOAT_TYPE: 4, _DOUBLE_TYPE: 8}.get(kind)
    return decimal(found[0]) if len(found) == 1 and len(found[0]) == size else None
