"""Logs over the connections of agents: questions to them, and the ends that they send.

A connection has one :class:`AgentLogs`; the :class:`LogDesk` of the server knows which worker has
which. Messages: :mod:`jobs.log_messages`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from jobs.events import Hello
from jobs.frames import FrameError, encode
from jobs.log_messages import SEGMENT_BYTES, LogAnswer, LogRequest, LogTails, LogTerms, TailPiece
from jobs.log_pieces import LogPiece
from orchestrator.database.log_tails import SqlLogTails
from orchestrator.errors import ConflictError, NotFoundError, TemporaryError
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
ANSWER_SECONDS = 15.0
"""Patience for the answer of an agent."""
_AT_ONCE = 4
"""Questions to one agent at a time; more wait here."""
_LEAST_SECONDS = 5.0
"""Between two looks of an agent for new output, in a small run."""
_RANKS_PER_SECOND = 80.0
"""Ends that one run sends at most, so that a large run does not fill the database's time."""
Handler = Callable[[dict[str, object]], Awaitable[None]]
M = TypeVar("M", bound=BaseModel)


class Sender(Protocol):
    """The connection of an agent, as logs use it."""

    async def send(self, frame: bytes) -> None:
        """Send a frame; ConnectionError when the connection is closed."""


class LogDesk:
    """The connections of all agents, for logs that lie on their nodes."""

    def __init__(self, tails: SqlLogTails, settings: Settings) -> None:
        self.tails = tails
        self._settings = settings
        self.connections: dict[str, AgentLogs] = {}
        """Worker → its connection."""
        self._seen: dict[str, int] = {}
        """Run → its newest attempt of which an end came."""
        self._forgotten: dict[str, int] = {}
        """Run → its newest attempt whose ends were deleted, as all took too much."""
        self._storing: set[asyncio.Task[None]] = set()

    def terms(self, ranks: int) -> LogTerms | None:
        """The terms for agents of a run with this number of ranks; None: no ends are kept."""
        settings = self._settings
        if not settings.log_tail_bytes:
            return None
        share = settings.log_tail_run_bytes // max(1, ranks)
        return LogTerms(
            tail_bytes=max(SEGMENT_BYTES, min(settings.log_tail_bytes, share)),
            seconds=max(_LEAST_SECONDS, ranks / _RANKS_PER_SECOND),
        )

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Store in the background, also after the connection is lost: these are last words."""
        task = asyncio.create_task(work)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        return task

    async def settled(self) -> None:
        """Wait until nothing is being stored."""
        await asyncio.gather(*self._storing)

    async def keep(self, run: str, worker: str, pieces: tuple[TailPiece, ...], tail: int) -> None:
        """Store ends, and drop those of old attempts where all take too much.

        An agent that connects again sends the ends of all its attempts, the newest one first.
        """
        forgotten = self._forgotten.get(run, 0)
        pieces = tuple(piece for piece in pieces if piece.attempt > forgotten)
        if not pieces:
            return
        seen = self._seen.get(run, 0)
        await self.tails.keep(run, worker, pieces, tail_bytes=tail)
        if any(piece.attempt != seen for piece in pieces):
            limit = self._settings.log_tail_run_bytes
            deleted = await self.tails.forget_old(run, most=limit)
            self._forgotten[run] = max(forgotten, deleted)
            self._seen[run] = max(seen, *(piece.attempt for piece in pieces))


class AgentLogs:
    """The logs of one connected agent."""

    def __init__(self, desk: LogDesk, socket: Sender, hello: Hello, ranks: int) -> None:
        self._desk, self._socket, self._hello = desk, socket, hello
        self.terms = desk.terms(ranks) if hello.logs else None
        """For the welcome; None: no end of its logs is kept."""
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting: dict[int, asyncio.Future[LogAnswer]] = {}
        self._numbers = itertools.count(1)
        self._storing: asyncio.Task[None] | None = None

    def opened(self) -> None:
        """Take questions from now on."""
        self._desk.connections[self._hello.worker] = self

    def closed(self) -> None:
        """Answer those who wait that the agent is gone."""
        if self._desk.connections.get(self._hello.worker) is self:
            del self._desk.connections[self._hello.worker]
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the agent's connection is closed"))

    @property
    def node(self) -> str:
        """The node of the agent."""
        return self._hello.node

    async def piece(
        self, attempt: int, rank: int, *, offset: int = 0, tail: int | None = None
    ) -> LogPiece:
        """A piece of a log on the node, at most a quarter of a megabyte.

        Raises:
            NotFoundError: There is no such log on the node.
            ConflictError: The agent is of a version that cannot send logs.
            TemporaryError: The agent does not answer, or cannot read its disk now.
        """
        hello = self._hello
        if not hello.logs:
            raise ConflictError(
                f"the agent on {hello.node} is of an older version, which cannot send its logs:"
                f" look at the files on {hello.node}, or restart the run for an agent of this"
                " version (babysit restart)",
                run=hello.run,
            )
        async with self._turn:
            number = next(self._numbers)
            request = LogRequest(id=number, attempt=attempt, rank=rank, offset=offset, tail=tail)
            answer = await self._ask(request)
        if answer.piece is not None:
            return answer.piece
        if answer.missing:
            raise NotFoundError(f"there is no log of attempt {attempt}, rank {rank} on {self.node}")
        raise TemporaryError(f"the log on {self.node} cannot be read: {answer.error}")

    async def _ask(self, request: LogRequest) -> LogAnswer:
        future: asyncio.Future[LogAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._socket.send(encode("log_request", request))
                return await future
        except (TimeoutError, ConnectionError) as error:
            raise TemporaryError(
                f"the agent on {self.node} does not answer: {error or 'too slow'}; try again"
            ) from error
        finally:
            del self._waiting[request.id]

    # --- frames of the agent ----------------------------------------------------------------------

    @property
    def handlers(self) -> dict[str, Handler]:
        """Kind of frame → the method that takes it."""
        return {"log_answer": self._on_answer, "log_tails": self._on_tails}

    async def _on_answer(self, body: dict[str, object]) -> None:
        """Take an answer; one that nobody waits for any more is dropped.

        Raises:
            FrameError: It cannot be read.
        """
        answer = _valid(LogAnswer, body)
        future = self._waiting.get(answer.id)
        if future is not None and not future.done():
            future.set_result(answer)

    async def _on_tails(self, body: dict[str, object]) -> None:
        """Store ends in the background, one frame at a time.

        Raises:
            FrameError: It cannot be read.
        """
        tails = _valid(LogTails, body)
        if self.terms is None or (self._storing is not None and not self._storing.done()):
            return  # it has not waited for its answer: it sends them again
        self._storing = self._desk.spawn(self._store(tails, self.terms.tail_bytes))

    async def _store(self, tails: LogTails, tail_bytes: int) -> None:
        hello = self._hello
        pieces = tuple(piece for piece in tails.pieces if piece.is_sound)
        try:
            if pieces:
                await self._desk.keep(hello.run, hello.worker, pieces, tail_bytes)
            await self._socket.send(encode("log_tails_kept", {"id": tails.id}))
        except (TemporaryError, ConnectionError) as error:
            _log.info("ends of logs not stored", worker=hello.worker, reason=str(error))


def _valid(kind: type[M], body: dict[str, object]) -> M:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise FrameError(f"{kind.__name__}: {error.error_count()} problems") from error
