"""The wire format of protobuf, as far as files of metrics need it. Pure.

Source: protobuf.dev/programming-guides/encoding. Fields have numbers; their types are
not in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")


class WireError(ValueError):
    """The bytes are not a message of protobuf."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers, and a whole number or bytes.

    Those of fixed length come as their 4 or 8 bytes.

    Raises:
        WireError: It is not a message, or it is cut.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise WireError(f"a field of kind {kind}")
        if place + size > len(message):
            raise WireError("a field is cut")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise WireError("a number is cut")


def signed(value: int) -> int:
    """A whole number of 64 bits that may be negative."""
    return value - (1 << 64) if value >= 1 << 63 else value


def decimal(value: bytes) -> float:
    """A float of 4 or 8 bytes.

    Raises:
        WireError: It has another length.
    """
    if len(value) not in {4, 8}:
        raise WireError("a float has 4 or 8 bytes")
    found: float = (_FLOAT if len(value) == 4 else _DOUBLE).unpack(value)[0]
    return found
