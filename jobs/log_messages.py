"""Logs over an agent's connection, where the server cannot read the disk of the node.

Frames: the server asks with `log_request` and the agent answers with `log_answer`; the agent sends
the ends of its logs with `log_tails`, and the server answers `log_tails_kept` once they are stored.

Neither side sends more than one large frame ahead of an answer, so heartbeats wait for a quarter of
a megabyte at most, and a slow reader holds nothing in memory. The agent says in its hello that it
understands requests, the server in its welcome that it keeps ends (:class:`LogTerms`): a peer of an
older version is sent neither. Unknown fields are ignored.
"""

from __future__ import annotations

import zlib

from pydantic import BaseModel, ConfigDict, Field

from jobs.log_pieces import LogPiece

LOGS_VERSION = 1
"""The version of these messages that an agent names in its hello."""
ANSWER_BYTES = 256 * 1024
"""Most bytes of a log in one frame."""
SEGMENT_BYTES = 64 * 1024
"""A log is kept in segments that begin at multiples of this; the last one grows."""
MOST_PACKED = SEGMENT_BYTES + 1024
"""Most bytes of a compressed segment."""
MOST_PIECES = 512
"""Most segments in one frame: a rank that writes little has a small one."""


class LogTerms(BaseModel):
    """The part of logs that the control plane keeps, as its welcome says."""

    model_config = ConfigDict(frozen=True)

    tail_bytes: int = Field(ge=SEGMENT_BYTES)
    """The end of each rank's log that is kept."""
    seconds: float = Field(gt=0)
    """Between two looks for new output."""


class LogRequest(BaseModel):
    """A question for a piece of one rank's log."""

    model_config = ConfigDict(frozen=True)

    id: int
    attempt: int
    rank: int
    offset: int = 0
    tail: int | None = None
    """Lines at the end; then `offset` does not count."""
    most: int = ANSWER_BYTES
    """Most bytes of the piece."""


class LogAnswer(BaseModel):
    """The answer to a request with the same id."""

    model_config = ConfigDict(frozen=True)

    id: int
    piece: LogPiece | None = None
    error: str = ""
    """Why there is no piece."""
    missing: bool = False
    """True: there is no such log on this node."""


class TailPiece(BaseModel):
    """A segment of one rank's log, or its beginning while it grows."""

    model_config = ConfigDict(frozen=True)

    attempt: int = Field(ge=1, le=2**31)
    rank: int = Field(ge=0, le=2**31)
    start: int = Field(ge=0, le=2**62)
    """Place of its first byte in the whole log; later than the segment's if that was deleted."""
    end: int = Field(ge=0, le=2**62)
    written: float = Field(ge=0, le=2**33, allow_inf_nan=False)
    """Unix seconds at which the log was written last, on the clock of the node."""
    packed: bytes = Field(max_length=MOST_PACKED)
    """The text, compressed by zlib."""

    @property
    def segment(self) -> int:
        """Number of the segment in the log."""
        return self.start // SEGMENT_BYTES

    @property
    def is_sound(self) -> bool:
        """True if its places are those of one segment."""
        return 0 < self.end - self.start <= SEGMENT_BYTES - self.start % SEGMENT_BYTES


class LogTails(BaseModel):
    """Segments that are new or have grown."""

    model_config = ConfigDict(frozen=True)

    id: int
    pieces: tuple[TailPiece, ...] = Field(max_length=MOST_PIECES)


def pack(text: bytes) -> bytes:
    """Compress a segment. Takes about a millisecond."""
    return zlib.compress(text, 6)


def unpack(packed: bytes) -> bytes:
    """The text of a segment; empty for other bytes, and never longer than a segment."""
    try:
        return zlib.decompressobj().decompress(packed, SEGMENT_BYTES)
    except zlib.error:
        return b""
