"""Large payloads of the journal, compressed.

A saved checkpoint of 8,000 ranks is journalled with 8,000 records of hashes. As plain JSON, 30 days
of a checkpoint each half hour are 9 GiB; compressed, they are a tenth of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

PLAIN_BYTES = 2048
"""Length of JSON text up to which a payload stays readable in SQL."""


def pack(payload: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The columns `payload` and `packed` of a payload whose JSON is `text`."""
    if len(text) <= PLAIN_BYTES:
        return {"payload": dict(payload), "packed": None}
    return {"payload": {}, "packed": zlib.compress(text.encode())}


def unpack(payload: dict[str, Any], packed: bytes | None) -> dict[str, Any]:
    """The payload that :func:`pack` was given, as it reads back from JSON."""
    return payload if packed is None else dict(from_json(zlib.decompress(packed)))
