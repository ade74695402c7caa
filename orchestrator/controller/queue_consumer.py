"""The one consumer of the queue: decides, writes one transaction, answers, dispatches.

The problem: state in memory and in the database must never differ by more than the transaction
under way, whatever fails: the database, the lead, or the core itself.

The design: one task takes one group of requests at a time. It has the core decide, writes state,
journal, outbox and sequences in one transaction guarded by the epoch, and only then answers the
callers and dispatches the outbox (`transactor`). Nothing is answered or carried out before it is
stored. Samples are seen by the monitors at once, and stored twice a second, those of all agents
together. A scheduling pass follows when the queue is empty, so that what comes together costs one
pass.

What may go wrong: while the database is away, the transaction waits, and so does all behind it.
When the core fails, the state is loaded again. When another server leads, everything is dropped
and the consumer ends.

Limits: one transaction at a time is the throughput of the whole control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

import structlog

from jobs.clock import Clock
from jobs.events import Event
from orchestrator.controller.dispatcher import OutboxDispatcher
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.transaction import (
    Part,
    TransactionEvents,
    event_set_aside,
    sameness,
)
from orchestrator.controller.transactor import Transactor, fail
from orchestrator.controller.turn_queue import (
    EventRequest,
    ReceiptsRequest,
    ReportRequest,
    Request,
    SamplesDueRequest,
    TurnQueue,
)
from orchestrator.core.messages.batching import coalesce
from orchestrator.core.messages.events import (
    CHECKPOINT_REQUESTS,
    IncidentChanged,
    RunSetAside,
    SchedulingPassDue,
)
from orchestrator.core.messages.instructions import Instruction
from orchestrator.database.port import Store
from orchestrator.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InternalError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
    PassFailedError,
)

_log = structlog.get_logger(__name__)
_STEPS_DOWN = "this server steps down, and loads the state again before it leads"
_STOPPING = "this server is stopping and may not have stored the request: try again"
_REFUSALS = (ConflictError, NotFoundError, InvalidError)
_OWN = ("controller", "monitor:")
"""Actors who ask again whatever happens. All others hear of a failure, and may ask again."""
_STATE_IS_STORED = (*_REFUSALS, InternalError, DatabaseUnavailableError)
"""Errors after which the state in memory is the stored one."""
SET_ASIDE_SECONDS = 60.0
"""An event of the controller's own that was set aside is not tried again for this time."""
PASS_SECONDS = 1.0
"""A scheduling pass that is wanted waits for an empty queue, but no longer than this."""
MAX_PASSES = 8
"""Scheduling passes in a row at most; a further one that is wanted follows the next request."""


class QueueConsumer:
    """Serves a queue under one epoch, from the beginning of a lead to its end."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        queue: TurnQueue,
        live: LiveState,
        dispatcher: OutboxDispatcher,
        epoch: int,
    ) -> None:
        self._store, self._clock, self._epoch = store, clock, epoch
        self._queue, self._live = queue, live
        self._transactor = Transactor(store, clock, live=live, dispatcher=dispatcher, epoch=epoch)
        self._wanted_since: float | None = None
        """When a scheduling pass was first seen to be wanted; None: none is."""
        self._set_aside: dict[str, float] = {}
        """Events of the controller's own over which the core failed twice, by `sameness`, with
        the time of the last try."""

    async def run(self) -> None:
        """Serve requests until the queue is closed or another server leads; close the queue then.

        Cancelled in the middle of a transaction, nobody knows whether that was stored: its callers
        get NotLeaderError, agents send their reports again, and the next leader drops those that
        were stored by their sequence.
        """
        try:
            while group := await self._queue.next_group():
                await self._serve(group)
        except LeadershipLostError as error:
            _log.warning(
                "leadership lost, dropping everything", epoch=self._epoch, error=str(error)
            )
        finally:
            self._queue.close()
            gone = NotLeaderError("this server lost the lead and did not store the report")
            fail(self._live.unstored.all(), gone)

    async def _serve(self, group: list[Request]) -> None:
        """Store a group and answer it; an error goes to the callers and stops nothing.

        Only a lost lead, or the end of the server, ends the consumer too.
        """
        instructions: list[Instruction] = []
        try:
            instructions = await self._store_group(group)
        except _STATE_IS_STORED as error:
            fail(group, error)
        except Exception as error:
            # A lost lead; or state and store may differ, and this server must load again.
            known = isinstance(error, LeadershipLostError)
            fail(group, error if known else LeadershipLostError(f"{error!r}: {_STEPS_DOWN}"))
            raise
        except asyncio.CancelledError:
            fail(group, NotLeaderError(_STOPPING))
            raise
        try:
            await self._pass_if_due()
        finally:  # the group is stored, whatever becomes of the pass
            for request in group:
                if not isinstance(request, ReportRequest):  # which may be buffered
                    request.resolve(instructions)

    async def _store_group(self, group: list[Request]) -> list[Instruction]:
        """Store what a group asks for. Reports are answered here, other requests by the caller.

        An agent waits for the acknowledgement only; a person's answer waits for the scheduling
        pass as well, if one follows at once, and so shows where a new run was placed.
        """
        match group[0]:
            case EventRequest(event=SchedulingPassDue(id=key)):
                await self._pass(key)
            case EventRequest(event=event):
                return await self._decide(event)
            case ReceiptsRequest(ids=ids):
                # In the queue, not beside it: a transaction under way may have made an entry
                # needless (a launch without tries left), and must be stored before the receipt, or
                # the next leader would find neither.
                await self._store.carried_out(ids, epoch=self._epoch)
            case SamplesDueRequest():
                await self._transactor.store_samples()
            case _:
                await self._store_reports([r for r in group if isinstance(r, ReportRequest)])
        return []

    # events

    async def _decide(self, event: Event) -> list[Instruction]:
        """Decide on an event that no agent reported."""
        if isinstance(event, IncidentChanged):
            # Here, not before the request was queued: a resolved incident leaves the state with
            # the next transaction, which may be that of another request.
            await self._live.recall(event.incident)
        elif isinstance(event, CHECKPOINT_REQUESTS):
            await self._live.recall_run(event.run)  # likewise: its run may have ended
        if progress := self._live.progress_events(event):
            # A transaction of its own: a request that is refused then changes nothing, and the
            # journal still explains the state. A failure is logged, and no reason not to act.
            with contextlib.suppress(InternalError):
                await self._transactor.transact(TransactionEvents.of(*progress))
        if event.actor.startswith(_OWN):
            return await self._decide_own(event)
        return await self._transactor.transact(TransactionEvents.of(event))

    async def _decide_own(self, event: Event) -> list[Instruction]:
        """Decide on an event of the controller's own; set it aside when the core fails twice.

        The loops make such an event again and again. One that was set aside is tried again after
        a while only: each failure costs everybody a load of the whole state.
        """
        if isinstance(event, SchedulingPassDue):
            await self._pass(event.cause)
            return []
        same = sameness(event)
        if self._clock.monotonic() - self._set_aside.get(same, -math.inf) < SET_ASIDE_SECONDS:
            raise InternalError(f"{event.kind} was set aside: the core fails over it")
        with contextlib.suppress(InternalError):
            return await self._transactor.transact(TransactionEvents.of(event))
        try:
            return await self._transactor.transact(TransactionEvents.of(event))
        except InternalError as error:
            known = same in self._set_aside
            self._set_aside[same] = self._clock.monotonic()
            if not known:
                aside = event_set_aside(self._live.events, event, error=error.__cause__ or error)
                with contextlib.suppress(InternalError):
                    await self._transactor.transact(TransactionEvents.of(aside))
            raise

    async def _pass_if_due(self) -> None:
        """Run a scheduling pass if one is wanted and the queue is empty.

        Under load without end the queue is never empty; then a pass runs every PASS_SECONDS. A
        pass may want the next one, which follows at once, up to MAX_PASSES in a row.
        """
        for _ in range(MAX_PASSES):
            cause = self._live.state.pass_wanted
            if cause is None or self._queue.closed:
                self._wanted_since = None
                return
            now = self._clock.monotonic()
            if self._wanted_since is None:
                self._wanted_since = now
            if len(self._queue) > 0 and now - self._wanted_since < PASS_SECONDS:
                return
            self._wanted_since = None
            await self._pass(cause)

    async def _pass(self, cause: str | None) -> None:
        """Run a scheduling pass, without the runs over which it fails: these are set aside.

        A pass that fails over no single run is logged, and stays wanted.
        """
        set_aside: set[str] = set()
        while True:
            due = self._live.events.make(SchedulingPassDue, cause=cause)
            try:
                await self._transactor.transact(TransactionEvents.of(due))
            except InternalError as error:
                failed = error.__cause__
                if not isinstance(failed, PassFailedError) or failed.run in set_aside:
                    return
                set_aside.add(failed.run)
            else:
                return
            why = f"{type(failed.error).__name__}: {failed.error}"
            with contextlib.suppress(InternalError):
                aside = self._live.events.make(RunSetAside, run=failed.run, reason=why)
                await self._transactor.transact(TransactionEvents.of(aside))

    # reports

    async def _store_reports(self, group: list[ReportRequest]) -> None:
        """Store reports in one transaction; or, where the core fails over that, each in its own."""
        new = self._new_in(group)
        await self._store_new(new)
        if len(new) < len(group):  # what came twice in the group is played now
            played = set(map(id, new))
            self._new_in([request for request in group if id(request) not in played])

    async def _store_new(self, new: list[ReportRequest]) -> None:
        if len(new) > 1:
            try:
                await self._transactor.transact(self._pending(new), new)
            except InternalError:
                _log.warning("reports failed together, storing one by one", count=len(new))
            else:
                return
        for request in new:
            if self._is_new(request):
                try:
                    await self._transactor.transact(self._pending([request]), [request])
                except InternalError as error:
                    self._transactor.refuse(request, error)

    def _new_in(self, group: list[ReportRequest]) -> list[ReportRequest]:
        """The reports that the core has not seen yet, in order; the others are answered.

        A report that waits to be stored, and comes again over another connection, is answered with
        the first one.
        """
        new: list[ReportRequest] = []
        newest: dict[str, int] = {}
        for request in group:
            worker, sequence = request.worker, request.report.sequence
            if not self._is_new(request):
                request.resolve([])
            elif sequence <= self._live.unstored.newest(worker):
                self._live.unstored.add([request])
            elif sequence > newest.get(worker, 0):
                newest[worker] = sequence
                new.append(request)
        return new

    def _is_new(self, request: ReportRequest) -> bool:
        """False for a report that is stored already, of a worker that is over, or refused."""
        if request.worker not in self._live.state.workers or self._transactor.refuses(request):
            return False
        return request.report.sequence > self._live.last_sequence(request.worker)

    def _pending(self, requests: list[ReportRequest]) -> TransactionEvents:
        """The events of reports, in the order in which they came.

        Events wait for their neighbours, with which they are joined; but not beyond samples of
        their run, which may mean something else after them.
        """
        join = coalesce if len(requests) > 1 else list
        parts: list[Part] = []
        events: list[Event] = []
        runs: set[str] = set()
        for request in requests:
            if request.report.samples:
                if request.run in runs:
                    parts.append((None, join(events)))
                    events, runs = [], set()
                samples = self._live.sample_events(request.run, request.worker, request.report)
                parts.append((samples, ()))
            if request.report.events:
                events += request.report.events
                runs.add(request.run)
        return TransactionEvents([*parts, (None, join(events))], self._live)
