"""The history in W&B's run files (`run-ID.wandb`), which are written online and offline. Pure.

After 7 bytes, the file is a log in the format of LevelDB: blocks of 32 KiB with fragments of
records, each with a checksum (CRC-32 of its kind and data), its length and its kind. A record is a
`Record` of protobuf. Sources: `wandb/sdk/internal/datastore.py`, `wandb_internal.proto`, and
github.com/google/leveldb/blob/main/doc/log_format.md.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator

from jobs.watch.files.protobuf import WireError, fields
from jobs.watch.files.rows import Row, numbers

_IDENT = b":W&B\xe1\xbe\x00"
_BLOCK = 32768
_HEAD = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_HISTORY = 2
"""Number of the history among the kinds of `Record`."""
_LARGEST = 1 << 20
_TIME = "_timestamp"


class RunFileDecoder:
    """Decodes one file."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._at = 0
        """Place of `_rest` in the file."""
        self._record = b""
        """The first fragments of a record."""
        self.trouble = ""
        """Why nothing more can be read; empty: nothing is wrong."""

    def feed(self, data: bytes) -> list[Row]:
        """Take bytes as they were appended; returns the rows of the records that they complete."""
        if self.trouble:
            return []
        self._rest += data
        if self._at == 0:
            if len(self._rest) < len(_IDENT):
                return []
            if self._rest[: len(_IDENT)] != _IDENT:
                self.trouble = "not a run file of W&B, or one of an unknown version"
                return []
            self._drop(len(_IDENT))
        rows: list[Row] = []
        while (fragment := self._fragment()) is not None:
            rows += self._joined(*fragment)
        return rows

    def _fragment(self) -> tuple[int, bytes] | None:
        """The next fragment: its kind, and its data; None: it is not there yet."""
        left = _BLOCK - self._at % _BLOCK
        if left < _HEAD.size:
            if len(self._rest) < left:
                return None
            self._drop(left)
        if len(self._rest) < _HEAD.size:
            return None
        check, length, kind = _HEAD.unpack_from(self._rest)
        end = _HEAD.size + length
        if len(self._rest) < end:
            return None
        data = bytes(self._rest[_HEAD.size : end])
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != check:
            self.trouble = "a record has a wrong checksum: the file is damaged"
            return None
        self._drop(end)
        return kind, data

    def _joined(self, kind: int, data: bytes) -> list[Row]:
        if kind in {_FULL, _FIRST}:
            self._record = b""
        if len(self._record) + len(data) <= _LARGEST:
            self._record += data
        if kind in {_FIRST, _MIDDLE}:
            return []
        record, self._record = self._record, b""
        return _rows(record)

    def _drop(self, count: int) -> None:
        del self._rest[:count]
        self._at += count


def _rows(record: bytes) -> list[Row]:
    """The row of a record; none if it is not one of the history."""
    values: dict[str, float] = {}
    try:
        for number, value in fields(record):
            if number == _HISTORY and isinstance(value, bytes):
                values |= dict(_items(value))
    except WireError:
        return []
    return [Row(values, time=values.get(_TIME))] if values else []


def _items(history: bytes) -> Iterator[tuple[str, float]]:
    for number, item in fields(history):
        if number != 1 or not isinstance(item, bytes):
            continue
        names, text = [], b""
        for part, content in fields(item):
            if isinstance(content, bytes) and part in {1, 2}:
                names.append(content.decode(errors="replace"))
            elif isinstance(content, bytes) and part == 16:
                text = content
        try:
            found = json.loads(text)
        except ValueError:
            continue
        yield from numbers({"/".join(names): found})
