"""Sends logs of this node to the control plane: pieces when asked, and the ends of all regularly.

The problem: where the server cannot read this node's disk, people still want the log of a rank
while it runs, and its last words after the node was lost.

The design: one task a connection answers one request after the other, and one sends the ends. Ends
are sent in compressed segments, only those that have grown, one frame at a time: the next one goes
out when the control plane has stored the one before. So neither a slow reader nor a slow database
makes this process hold more than a frame of each, and heartbeats go out in between.

Limits: after the loss of a node, what its ranks wrote since the last look is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from pydantic import ValidationError

from jobs import frames
from jobs.clock import Clock, wait_at_most
from jobs.log_files import end_of, older_parts
from jobs.log_messages import (
    ANSWER_BYTES,
    MOST_PIECES,
    SEGMENT_BYTES,
    LogAnswer,
    LogRequest,
    LogTails,
    LogTerms,
    TailPiece,
    pack,
)
from jobs.log_pieces import LogPiece, read_piece, read_range

_WAITING = 16
"""Requests that may wait; a server of this version never has as many under way."""
_KEPT_SECONDS = 30.0
"""Patience for the control plane to store an end; then the next look sends it again."""
_FINISH_SECONDS = 5.0
"""Most time that an agent takes for its last ends before it leaves."""
_TRIES = 5
Send = Callable[[bytes], Awaitable[None]]
Key = tuple[int, int]
"""Attempt and rank."""


class _Grown(NamedTuple):
    """A log with output that is not stored."""

    key: Key
    start: int
    end: int
    written: float


class LogSender:
    """The logs of one agent on their way to the control plane."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._paths: dict[Key, Path] = {}
        self._stored: dict[Key, int] = {}
        """Up to which place the control plane has stored each log."""
        self._questions: asyncio.Queue[LogRequest] = asyncio.Queue(_WAITING)
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._hurry = asyncio.Event()
        self._looked = asyncio.Event()
        self._sends_ends = False
        self._log = structlog.get_logger(part="log_sender")

    # --- called by the agent --------------------------------------------------------------------

    def follow(self, attempt: int, logs: Mapping[int, Path]) -> None:
        """Send these logs, too: rank → its log."""
        self._paths.update({(attempt, rank): log for rank, log in logs.items()})

    def hurry(self) -> None:
        """Look for new output at once: a rank has ended, say."""
        self._hurry.set()

    async def finish(self) -> None:
        """Send what is left, for some seconds at most, if the control plane keeps it at all."""
        for _ in range(_TRIES):
            if not self._sends_ends or not await asyncio.to_thread(self._grown, SEGMENT_BYTES):
                return
            self._looked.clear()
            self.hurry()
            await wait_at_most(self._clock, self._looked, _FINISH_SECONDS / _TRIES)

    # --- called by the connection ---------------------------------------------------------------

    def take(self, kind: str, body: dict[str, Any]) -> None:
        """Take a frame about logs. Returns at once."""
        try:
            if kind == "log_request":
                self._questions.put_nowait(LogRequest.model_validate(body))
            elif (waits := self._answers.get(int(body.get("id", 0)))) and not waits.done():
                waits.set_result(None)
        except (ValidationError, ValueError, TypeError, asyncio.QueueFull) as error:
            self._log.warning("frame about logs ignored", kind=kind, reason=str(error))

    def serve(self, send: Send, terms: object) -> Coroutine[Any, Any, None]:
        """Answer questions, and send ends if the control plane keeps any, until cancelled.

        Questions that come after this call, and before the coroutine runs, are answered, too.

        Args:
            send: Sends a frame; returns when the connection takes more.
            terms: What the welcome says of logs; None: nothing is kept.
        """
        while not self._questions.empty():  # of a connection that is gone
            self._questions.get_nowait()
        try:
            agreed = None if terms is None else LogTerms.model_validate(terms)
        except ValidationError as error:
            self._log.warning("terms of logs not understood", reason=str(error))
            agreed = None
        return self._serve(send, agreed)

    async def _serve(self, send: Send, agreed: LogTerms | None) -> None:
        self._sends_ends = agreed is not None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._answer_all(send))
                if agreed is not None:
                    tasks.create_task(self._send_ends(send, agreed))
        finally:
            self._sends_ends = False
            self._looked.set()

    # --- questions ------------------------------------------------------------------------------

    async def _answer_all(self, send: Send) -> None:
        while True:
            request = await self._questions.get()
            answer = await asyncio.to_thread(self._answer, request)
            await send(frames.encode("log_answer", answer))

    def _answer(self, request: LogRequest) -> LogAnswer:
        path = self._paths.get((request.attempt, request.rank))
        if path is None:
            return LogAnswer(id=request.id, error="no such log on this node", missing=True)
        most = max(1, min(request.most, ANSWER_BYTES))
        try:
            piece = read_piece(path, offset=max(0, request.offset), tail=request.tail, most=most)
        except FileNotFoundError:  # the rank starts, or rotates its log, at this moment
            place = max(0, request.offset)  # nobody starts anew: the place is still right
            piece = LogPiece(text="", offset=place, next_offset=place, bytes=0)
        except OSError as error:
            return LogAnswer(id=request.id, error=f"{error.filename}: {error.strerror}")
        return LogAnswer(id=request.id, piece=piece)

    # --- ends -----------------------------------------------------------------------------------

    async def _send_ends(self, send: Send, terms: LogTerms) -> None:
        # Another server may have another database, and the answer to the last frame may be lost.
        self._stored.clear()
        while True:
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                await self._look(send, terms)
            self._looked.set()
            await wait_at_most(self._clock, self._hurry, terms.seconds)

    async def _look(self, send: Send, terms: LogTerms) -> None:
        """Send what has grown.

        Raises:
            TimeoutError: The control plane does not store it now.
        """
        grown = await asyncio.to_thread(self._grown, terms.tail_bytes)
        batches = self._batches(grown)
        while (pieces := await asyncio.to_thread(next, batches, None)) is not None:
            number = next(self._numbers)
            answered = self._answers[number] = asyncio.get_running_loop().create_future()
            try:
                await send(frames.encode("log_tails", LogTails(id=number, pieces=tuple(pieces))))
                async with asyncio.timeout(_KEPT_SECONDS):
                    await answered
            finally:
                del self._answers[number]
            for piece in pieces:
                self._stored[piece.attempt, piece.rank] = piece.end

    def _grown(self, tail_bytes: int) -> list[_Grown]:
        """Logs with output that is not stored, the newest attempt first."""
        found = []
        for key, path in sorted(self._paths.items(), key=lambda item: (-item[0][0], item[0][1])):
            with contextlib.suppress(OSError):  # not there yet, or rotated at this moment
                status = path.stat()
                end = end_of(older_parts(path)) + status.st_size
                stored = self._stored.get(key, 0)
                if end > stored:
                    start = max(_segment(stored), _segment(max(0, end - tail_bytes)))
                    found.append(_Grown(key, start, end, status.st_mtime))
        return found

    def _batches(self, grown: list[_Grown]) -> Iterator[list[TailPiece]]:
        """Segments to send, in batches of the size of one frame."""
        batch: list[TailPiece] = []
        size = 0
        for log in grown:
            for place in range(log.start, log.end, SEGMENT_BYTES):
                piece = self._piece(log, place)
                if piece is None:
                    continue
                if batch and (size + len(piece.packed) > ANSWER_BYTES or len(batch) == MOST_PIECES):
                    yield batch
                    batch, size = [], 0
                batch.append(piece)
                size += len(piece.packed)
        if batch:
            yield batch

    def _piece(self, log: _Grown, place: int) -> TailPiece | None:
        """The segment at a place; None: it was deleted meanwhile, or cannot be read."""
        try:
            end = min(log.end, place + SEGMENT_BYTES)
            first, text = read_range(self._paths[log.key], place, end)
        except OSError:
            return None
        if not text:
            return None
        return TailPiece(
            attempt=log.key[0],
            rank=log.key[1],
            start=first,
            end=first + len(text),
            written=log.written,
            packed=pack(text),
        )


def _segment(place: int) -> int:
    """Where the segment of a place begins."""
    return place - place % SEGMENT_BYTES
