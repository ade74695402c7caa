"""Frames between agent and control plane: msgpack maps `{"type": …, "body": {…}}`.

From the agent: `hello`, `report`, `listening`, `heartbeat`, `ack_command`. From the control plane:
`welcome`, `ack`, `command`, `refused`. Bodies are the models of :mod:`jobs.events` and
:mod:`jobs.commands`. Frames about logs, either way: :mod:`jobs.log_messages`.
Times are ISO 8601 strings, and NaN stays NaN, which JSON could not represent.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgpack
from pydantic import BaseModel


class FrameError(ValueError):
    """The bytes are not a frame of this protocol."""


def _plain(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    raise TypeError(
        f"a frame cannot contain a {type(value).__name__}; use a str, number, list or dict"
    )


def encode(kind: str, body: BaseModel | Mapping[str, Any]) -> bytes:
    """Encode one frame.

    Texts with characters that UTF-8 does not have are written with escapes: Python reads file names
    of other encodings so, and they come along in the messages of exceptions.

    Args:
        kind: Type of the frame, such as `report`.
        body: A model, or a mapping of plain values.

    Raises:
        TypeError: The body contains a value of an unsupported type.
    """
    content = body.model_dump() if isinstance(body, BaseModel) else dict(body)
    packed: bytes = msgpack.packb(
        {"type": kind, "body": content}, default=_plain, unicode_errors="backslashreplace"
    )
    return packed


def decode(data: bytes | str) -> tuple[str, dict[str, Any]]:
    """Decode a frame to its type and body; the caller validates the body.

    Raises:
        FrameError: The data is not msgpack, or not a map with a `type` and a `body`.
    """
    if isinstance(data, str):
        raise FrameError("expected a binary frame, got text; the peer speaks another protocol")
    try:
        frame = msgpack.unpackb(data)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"expected msgpack, got {len(data)} other bytes: {error}") from error
    match frame:
        case {"type": str(kind), "body": dict(body)}:
            return kind, body
    raise FrameError(f"expected a map with `type` and `body`, got {type(frame).__name__}")
