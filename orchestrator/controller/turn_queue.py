"""The queue in front of the core: requests in order of arrival, each with a future for its answer.

The problem: reports of agents, requests of people and events of the controller's own all change
one state, which is written one transaction at a time. A gang of 2,000 nodes answers one command
with 2,000 reports at once; one transaction for each would keep the last agent waiting for minutes.

The design: callers put a request and await its future. One consumer (`queue_consumer`) takes the
oldest request, together with the requests right behind it that can share its transaction. The
queue is plain data: it calls nobody, so every part of the controller may hold it.

Limits: the queue has no bound (agents send one report at a time, so it holds at most one for each
agent) and no priorities.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence

from jobs.events import Event, Report
from orchestrator.controller.event_factory import EventFactory
from orchestrator.core.messages.instructions import Instruction
from orchestrator.errors import InternalError, LeadershipLostError, NotLeaderError

MAX_GROUP = 4096
"""Reports in one transaction at most: bounds the size of a transaction."""


def _future() -> asyncio.Future[list[Instruction]]:
    return asyncio.get_running_loop().create_future()


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """Something to be stored, and the future of the caller that waits for it.

    A caller that goes away cancels the future, and nothing else: the request stays in the queue
    and its transaction runs to its end. No `asyncio.shield` is needed for that, since no caller
    ever awaits the transaction itself, which the consumer runs in a task of its own.
    """

    answer: asyncio.Future[list[Instruction]] = dataclasses.field(
        default_factory=_future, init=False
    )

    def resolve(self, instructions: list[Instruction]) -> None:
        """Answer that the request is stored. No effect on a request with an answer."""
        if not self.answer.done():
            self.answer.set_result(instructions)

    def fail(self, error: Exception) -> None:
        """Answer with an error: nothing was stored. No effect on a request with an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclasses.dataclass(slots=True, eq=False)
class EventRequest(Request):
    """One event to be decided on, of a person, a program or the controller itself."""

    event: Event


@dataclasses.dataclass(slots=True, eq=False)
class ReportRequest(Request):
    """One numbered report of an agent."""

    worker: str
    report: Report


@dataclasses.dataclass(slots=True, eq=False)
class ReceiptsRequest(Request):
    """Ids of outbox entries that are carried out, to be marked as done."""

    ids: Sequence[str]


class TurnQueue:
    """Requests that wait for their transaction, first in, first out."""

    def __init__(self, events: EventFactory) -> None:
        self._events = events
        self._requests: deque[Request] = deque()
        self._arrived = asyncio.Event()
        self.closed = False
        """True once this server has lost the lead: no request is taken or answered with success."""

    def __len__(self) -> int:
        return len(self._requests)

    async def submit(self, event: Event) -> list[Instruction]:
        """Have one event decided on; the instructions it led to, once they are stored.

        Raises:
            ConflictError, NotFoundError, InvalidError: The core refused it; nothing changed.
            InternalError: The core failed over it; nothing changed.
            NotLeaderError, LeadershipLostError: Not stored here; ask the leader.
        """
        return await self._put(EventRequest(event))

    async def decide(self, kind: type[Event], **fields: object) -> bool:
        """Have an event of the controller's own decided on; False when the core failed over it.

        The failure is in the log. An event that comes between two leaders is dropped without an
        error, since the next leader asks the cluster and the clock itself.
        """
        try:
            with contextlib.suppress(NotLeaderError, LeadershipLostError):
                await self.submit(self._events.make(kind, **fields))
        except InternalError:
            return False
        return True

    async def report(self, worker: str, report: Report) -> None:
        """Have a report stored. When this returns, and only then, it may be acknowledged.

        Raises NotLeaderError, LeadershipLostError or InternalError: the agent must send it again.
        """
        await self._put(ReportRequest(worker, report))

    async def store_receipts(self, ids: Sequence[str]) -> None:
        """Have outbox entries marked as done, after all that waits in the queue already.

        Raises DatabaseUnavailableError, NotLeaderError or LeadershipLostError: not marked.
        """
        await self._put(ReceiptsRequest(ids))

    async def _put(self, request: Request) -> list[Instruction]:
        if self.closed:
            raise NotLeaderError("this server is not the leader (yet): try again")
        self._requests.append(request)
        self._arrived.set()
        return await request.answer

    async def next_group(self) -> list[Request]:
        """Wait for the oldest request, and take it with those that share its transaction.

        Only reports that wait next to each other share one, so that nothing changes places. A
        report with samples stands alone: what its samples mean depends on what the core made of
        all before. Empty: the queue is closed.
        """
        while not self._requests and not self.closed:
            self._arrived.clear()
            await self._arrived.wait()
        if self.closed:
            return []
        group = [self._requests.popleft()]
        while (
            self._requests
            and len(group) < MAX_GROUP
            and _can_share(group[0])
            and _can_share(self._requests[0])
        ):
            group.append(self._requests.popleft())
        return group

    def close(self) -> None:
        """Take nothing more; answer all that waits with NotLeaderError.

        The request that the consumer has taken is not among them: its transaction may be stored
        already, and only the consumer knows.
        """
        self.closed = True
        while self._requests:
            self._requests.popleft().fail(
                NotLeaderError("this server lost the lead and did not store the request: try again")
            )
        self._arrived.set()


def _can_share(request: Request) -> bool:
    return isinstance(request, ReportRequest) and not request.report.samples
