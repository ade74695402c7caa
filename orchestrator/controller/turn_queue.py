"""The queue in front of the core: requests in lanes, each with a future for its answer.

The problem: reports of agents, requests of people and events of the controller's own all change
one state, which is written one transaction at a time. A gang of 2,000 nodes answers one command
with 2,000 reports at once; one transaction for each would keep the last agent waiting for minutes.
Steps come many times a second, and fifty people may ask without a pause; the exit of a rank must
wait for neither.

The design: callers put a request and await its future. One consumer (`queue_consumer`) takes
groups that share a transaction, from three lanes. The first holds agents' events and the
controller's own; it is served before the others, though people, in the second, are served in
between. The third holds reports with nothing but samples, which wait for all else. What is known of
a run comes first all the same: before a request about a run, the samples of that run are taken.

The reports of one worker keep their order: behind a report with events, its samples wait in the
first lane too.

Limits: the lanes have no bound; the gateway reads a limited number of reports ahead for each agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TypeVar

from jobs.events import Event, Report
from orchestrator.controller.event_factory import EventFactory
from orchestrator.core.messages.events import SchedulingPassDue
from orchestrator.core.messages.instructions import Instruction
from orchestrator.errors import InternalError, LeadershipLostError, NotLeaderError

MAX_GROUP = 4096
"""Reports in one transaction at most: bounds the size of a transaction."""
MAX_SAMPLED = 256
"""Reports with samples that are taken at once, at most: events wait for no more of them."""


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
    since: float = dataclasses.field(default=0.0, init=False)
    """When it was put, monotonic seconds."""
    prepared: bool = dataclasses.field(default=False, init=False)
    """True once the samples that come before it have been taken."""

    def resolve(self, instructions: list[Instruction]) -> None:
        """Answer that the request is stored. No effect on a request with an answer."""
        if not self.answer.done():
            self.answer.set_result(instructions)

    def fail(self, error: Exception) -> None:
        """Answer with an error: nothing was stored. No effect on a request with an answer.

        Nobody may wait for it any more: an agent whose connection broke asks again anyway.
        """
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # retrieved: else asyncio logs each that nobody waits for


R = TypeVar("R", bound=Request)


@dataclasses.dataclass(slots=True, eq=False)
class EventRequest(Request):
    """One event to be decided on, of a person, a program or the controller itself."""

    event: Event


@dataclasses.dataclass(slots=True, eq=False)
class ReportRequest(Request):
    """One numbered report of an agent."""

    worker: str
    report: Report
    run: str = ""
    """The run of the worker; empty: it is over."""


@dataclasses.dataclass(slots=True, eq=False)
class SamplesDueRequest(Request):
    """The samples that wait are to be stored."""


@dataclasses.dataclass(slots=True, eq=False)
class ReceiptsRequest(Request):
    """Ids of outbox entries that are carried out, to be marked as done."""

    ids: Sequence[str]


class TurnQueue:
    """Requests that wait for their transaction."""

    def __init__(self, events: EventFactory) -> None:
        self._events = events
        self._own: deque[Request] = deque()
        """Reports with events, and what the controller itself asks for."""
        self._people: deque[Request] = deque()
        self._samples: dict[str, deque[ReportRequest]] = {}
        """Reports with samples only, by run."""
        self._behind: Counter[str] = Counter()
        """Reports in `_own`, by worker."""
        self._peoples_turn = False
        self._arrived = asyncio.Event()
        self._served_since: float | None = None
        """Since when the oldest request that was taken last has waited; None: none is served."""
        self.closed = False
        """True once this server has lost the lead: no request is taken or answered with success."""

    def __len__(self) -> int:
        """Number of requests that wait, without samples."""
        return len(self._own) + len(self._people)

    @property
    def age(self) -> float:
        """How long the oldest request has waited, with the ones that are served now; seconds."""
        lanes: list[Sequence[Request]] = [self._own, self._people, *self._samples.values()]
        waited = [lane[0].since for lane in lanes if lane]
        if self._served_since is not None:
            waited.append(self._served_since)
        return self._events.clock.monotonic() - min(waited) if waited else 0.0

    async def submit(self, event: Event) -> list[Instruction]:
        """Have one event decided on; the instructions it led to, once they are stored.

        Raises:
            ConflictError, NotFoundError, InvalidError: The core refused it; nothing changed.
            InternalError: The core failed over it; nothing changed.
            NotLeaderError, LeadershipLostError: Not stored here; ask the leader.
        """
        return await self._put(EventRequest(event), self._people)

    async def decide(self, kind: type[Event], **fields: object) -> bool:
        """Have an event of the controller's own decided on; False when the core failed over it.

        The failure is in the log. An event that comes between two leaders is dropped without an
        error, since the next leader asks the cluster and the clock itself.
        """
        with contextlib.suppress(NotLeaderError, LeadershipLostError):
            return await self.take_note(kind, **fields)
        return True

    async def take_note(self, kind: type[Event], **fields: object) -> bool:
        """As `decide`, of what its source forgets once this has returned.

        Raises:
            NotLeaderError, LeadershipLostError: Not stored: the source must tell the next leader.
        """
        try:
            await self._put(EventRequest(self._events.make(kind, **fields)), self._own)
        except InternalError:
            return False
        return True

    def report(self, worker: str, report: Report, run: str) -> asyncio.Future[list[Instruction]]:
        """Have a report stored. Once the future has a result, and only then, acknowledge it.

        Takes the reports of a worker in the order of the calls. The future may raise
        NotLeaderError, LeadershipLostError or InternalError: the agent must send it again.

        Raises:
            NotLeaderError: This server does not lead.
        """
        request = ReportRequest(worker, report, run)
        if report.events or not report.samples or self._behind[worker] or not run:
            self._behind[worker] += 1
            return self._add(request, self._own)
        return self._add(request, self._samples.setdefault(run, deque()))

    async def store_receipts(self, ids: Sequence[str]) -> None:
        """Have outbox entries marked as done, after all that waits in the lane already.

        Raises DatabaseUnavailableError, NotLeaderError or LeadershipLostError: not marked.
        """
        await self._put(ReceiptsRequest(ids), self._own)

    async def store_samples(self) -> None:
        """Have the samples that wait stored, all of them or a part.

        Raises NotLeaderError or LeadershipLostError: not stored.
        """
        await self._put(SamplesDueRequest(), self._own)

    async def _put(self, request: Request, lane: deque[Request]) -> list[Instruction]:
        return await self._add(request, lane)

    def _add(self, request: R, lane: deque[R]) -> asyncio.Future[list[Instruction]]:
        if self.closed:
            raise NotLeaderError("this server is not the leader (yet): try again")
        request.since = self._events.clock.monotonic()
        lane.append(request)
        self._arrived.set()
        return request.answer

    async def next_group(self) -> list[Request]:
        """Wait for a request, and take it with those that share its transaction.

        Reports that wait next to each other share one. Empty: the queue is closed.
        """
        self._served_since = None
        while not (self._own or self._people or self._samples or self.closed):
            self._arrived.clear()
            await self._arrived.wait()
        if self.closed:
            return []
        group = self._next()
        self._served_since = min(request.since for request in group)
        return group

    def _next(self) -> list[Request]:
        own = bool(self._own) and not (self._peoples_turn and self._people)
        lane = self._own if own else self._people
        if not lane:
            return self._take_samples(list(self._samples), MAX_SAMPLED)
        group = _sharing(lane)
        if not group[0].prepared and (before := self._samples_before(group)):
            return before
        self._peoples_turn = own
        for _ in group:
            lane.popleft()
        for request in group:
            if isinstance(request, ReportRequest):
                self._left(request.worker)
        return group

    def _left(self, worker: str) -> None:
        self._behind[worker] -= 1
        if not self._behind[worker]:
            del self._behind[worker]

    def _samples_before(self, group: list[Request]) -> list[Request]:
        """Take the samples that are to be known before some requests; often none.

        They share no transaction with the group, which may be in the lane for long: reports that
        come to the lane meanwhile would overtake samples of their worker, and are left out then.
        """
        runs: set[str] = set()
        for request in group:
            request.prepared = True
            match request:
                case ReportRequest(run=run):
                    runs.add(run)
                case EventRequest(event=SchedulingPassDue()):
                    pass
                case EventRequest(event=event):
                    about: str | None = getattr(event, "run", None)
                    runs |= self._samples.keys() if about is None else {about}
        return self._take_samples([run for run in runs if run in self._samples], MAX_GROUP)

    def _take_samples(self, runs: Iterable[str], most: int) -> list[Request]:
        taken: list[Request] = []
        for run in runs:
            if len(taken) >= most:
                break
            taken += self._samples.pop(run)
        return taken

    def close(self) -> None:
        """Take nothing more; answer all that waits with NotLeaderError.

        The request that the consumer has taken is not among them: its transaction may be stored
        already, and only the consumer knows.
        """
        self.closed = True
        lanes: list[Sequence[Request]] = [self._own, self._people, *self._samples.values()]
        waiting = [request for lane in lanes for request in lane]
        for each in (self._own, self._people, self._samples, self._behind):
            each.clear()
        for request in waiting:
            request.fail(
                NotLeaderError("this server lost the lead and did not store the request: try again")
            )
        self._arrived.set()


def _sharing(lane: deque[Request]) -> list[Request]:
    """The first request of a lane with those behind it that share its transaction."""
    first = lane[0]
    if not isinstance(first, ReportRequest):
        return [first]
    alike = itertools.takewhile(
        lambda each: isinstance(each, ReportRequest) and each.prepared == first.prepared, lane
    )
    return list(itertools.islice(alike, MAX_GROUP))
