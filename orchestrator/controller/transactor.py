"""Transactions of the consumer: play events, write what came of it, answer and dispatch.

The problem: a transaction holds events, reports and samples of many agents, and any of them may be
what the core or the database fails over. One bad report must cost no more than itself.

The design: `transact` has the core handle events and writes the outcome with the reports that they
came from. Reports without anything for the core are buffered; `store_samples` writes those of many
agents in one transaction. Whatever fails together is tried one by one.

Limits: while the database is away, a transaction waits, and all behind it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Iterable, Sequence

import structlog

from jobs.clock import Clock
from orchestrator.controller.dispatcher import OutboxDispatcher
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.sample_buffer import newest_sequences
from orchestrator.controller.transaction import (
    TransactionEvents,
    TransactionRecord,
    commit_when_possible,
    event_set_aside,
    runs_of,
    samples_of,
)
from orchestrator.controller.turn_queue import ReportRequest, Request
from orchestrator.core.messages.instructions import Instruction
from orchestrator.database.port import Batch, Store
from orchestrator.errors import (
    ConflictError,
    InternalError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
)

_log = structlog.get_logger(__name__)
_REFUSALS = (ConflictError, NotFoundError, InvalidError)
_WITH_SAMPLES = {1, 3}
"""Failed writes of a report after which it is tried with its samples; see `after_refusal`."""
_STOPPING = "this server is stopping and may not have stored the request: try again"


@dataclasses.dataclass(slots=True)
class _Work:
    """One transaction, try after try."""

    pending: TransactionEvents
    reports: Sequence[ReportRequest]
    """Reports that `pending` comes from."""
    refused: int = 0
    """How often the database has refused what the events led to."""
    with_samples: bool = True
    """False: the samples of the reports are left out."""
    buffered: list[ReportRequest] = dataclasses.field(default_factory=list)
    """Earlier reports of the runs that change, whose samples are stored with them."""


class Transactor:
    """Writes under one epoch. Used by one task at a time."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        live: LiveState,
        dispatcher: OutboxDispatcher,
        epoch: int,
    ) -> None:
        self._store, self._clock, self._epoch = store, clock, epoch
        self._live, self._dispatcher = live, dispatcher
        self._refused: dict[str, int] = {}
        """Worker to the sequence of a report that could not be stored; what follows it waits."""

    async def transact(
        self, pending: TransactionEvents, reports: Sequence[ReportRequest] = ()
    ) -> list[Instruction]:
        """Have the core handle events, write all of it in one transaction, then dispatch it.

        Answers the reports that `pending` comes from, and the buffered ones of the runs that
        change; but reports without anything for the core are buffered.

        A failure of the core costs as little as possible. An agent sends its report until it is
        taken, so a report that always fails would block all behind it: an event that fails twice is
        set aside (`EventSetAside`), and so is what the database refuses. Several reports together,
        and requests, raise InternalError instead: reports are tried one by one.

        Raises:
            ConflictError, NotFoundError, InvalidError: The core refused a request.
            InternalError: The core failed; the state is that of the database again.
            LeadershipLostError: Another server leads; nothing was written.
        """
        work = _Work(pending, reports)
        while True:
            record = TransactionRecord()
            try:
                record.play(self._live.state, work.pending, self._clock)
                if not record and work.with_samples and samples_of(reports):
                    self._live.unstored.add(reports)
                    return []
                if record or reports:
                    await self._write_turn(record.batch(self._live.state), work)
                break
            except LeadershipLostError as error:
                fail(work.buffered, error)
                raise
            except asyncio.CancelledError:
                fail(work.buffered, NotLeaderError(_STOPPING))
                raise
            except Exception as error:
                if isinstance(error, _REFUSALS) and not reports:
                    raise  # the core refuses a request before it changes anything
                if not await self._try_again(work, error):
                    raise InternalError(
                        f"{error!r}: an internal error, see the server's log; nothing was changed"
                    ) from error
        # From here on it is stored. No await until the end: what was decided, what is dispatched
        # and what the next transaction finds must agree.
        self._live.set_aside.update(record.set_aside)
        self._dispatcher.dispatch(record.outbox)
        for worker in self._live.forget(record.over):
            self._dispatcher.forget(worker)
        resolve([*work.buffered, *reports])
        return record.instructions

    async def _write_turn(self, batch: Batch, work: _Work) -> None:
        runs = runs_of(batch) | {request.run for request in work.reports}
        work.buffered = self._live.unstored.take(runs)
        sampled = [*work.buffered, *(work.reports if work.with_samples else ())]
        await self._write(batch, sampled, [*work.buffered, *work.reports])

    async def _try_again(self, work: _Work, error: Exception) -> bool:
        """After a failure: load the state, and set aside what has failed twice; False: give up."""
        buffered, work.buffered = work.buffered, []
        reports = work.reports
        if buffered:  # which may be what the write failed over
            self._live.unstored.put_back(buffered)
            await self._recover(reports)
            await self._store_each(self._live.unstored.take(each.run for each in buffered))
            work.pending.rewind()
            return True
        await self._recover(reports if len(reports) == 1 else ())
        sampled = work.with_samples and samples_of(reports)
        if len(reports) != 1 or not (work.pending or sampled):
            return False
        set_aside = functools.partial(event_set_aside, self._live.events, error=error)
        if not work.pending.try_again(set_aside):  # every event was handled: the write failed
            work.refused += 1
            work.pending = work.pending.after_refusal(work.refused, set_aside)
            work.with_samples = work.refused in _WITH_SAMPLES
        return True

    def refuse(self, report: ReportRequest, error: InternalError) -> None:
        """Answer that a report cannot be stored: its agent sends it and all that follow again."""
        self._refused[report.worker] = report.report.sequence
        report.fail(error)

    def refuses(self, report: ReportRequest) -> bool:
        """True for a report after one that was refused, which is answered like that.

        Storing it would end the other one: sequences only grow.
        """
        refused = self._refused.get(report.worker)
        if refused is None or report.report.sequence <= refused:
            self._refused.pop(report.worker, None)
            return False
        report.fail(InternalError("an earlier report of this agent could not be stored"))
        return True

    async def store_samples(self) -> None:
        """Store buffered reports, as many as share a transaction.

        Raises:
            LeadershipLostError: Another server leads; nothing was written.
        """
        await self._store_each(self._live.unstored.take_some(), together=True)

    async def _store_each(self, reports: list[ReportRequest], *, together: bool = False) -> None:
        """Store reports for which the core has nothing to do; where that fails, one by one.

        A report whose samples the database refuses is stored without them.
        """
        groups = [reports] if together and reports else [[report] for report in reports]
        for at, group in enumerate(groups):
            if len(group) == 1 and self.refuses(group[0]):
                continue
            try:
                await self._store_played(group)
            except LeadershipLostError as error:
                fail(reports[at:], error)
                raise
            except asyncio.CancelledError:
                fail(reports[at:], NotLeaderError(_STOPPING))
                raise
            except Exception as error:  # noqa: BLE001 (whatever it is, the others must be stored)
                _log.exception("samples cannot be stored; please report this", count=len(group))
                if len(group) > 1:
                    await self._store_each(group)
                    continue
                text = f"{error!r}: an internal error, see the server's log"
                self.refuse(group[0], InternalError(text))

    async def _store_played(self, group: list[ReportRequest]) -> None:
        try:
            await self._write(Batch(), group, group)
        except LeadershipLostError:
            raise
        except Exception:
            if len(group) > 1:
                raise
            _log.exception("samples left out; please report this", worker=group[0].worker)
            await self._write(Batch(), (), group)
        resolve(group)

    async def _write(
        self, batch: Batch, sampled: Iterable[ReportRequest], reports: Iterable[ReportRequest]
    ) -> None:
        """Write a batch with samples and the sequences of reports; note these as stored."""
        sequences = newest_sequences(reports)
        samples = [self._live.kept(each) for each in samples_of(sampled)]
        batch = dataclasses.replace(
            batch, samples=[each for each in samples if each.ranks], sequences=sequences
        )
        await commit_when_possible(
            self._store, batch, self._epoch, self._clock, self._live.database
        )
        here = self._live.state.workers
        self._live.sequences.update({w: s for w, s in sequences.items() if w in here})

    async def _recover(self, reports: Sequence[ReportRequest]) -> None:
        """Go back to what is stored after the core failed, which may have left a half turn.

        A scheduling pass that was wanted stays wanted: that is not stored, and a transaction
        before this one may have asked for it. `reports`, and the buffered ones, have been played
        and are not stored: the new monitors see their samples.
        """
        _log.exception("the core failed on an event; please report this")
        wanted = self._live.state.pass_wanted
        try:
            await self._live.load_when_possible(samples_of([*self._live.unstored.all(), *reports]))
        except Exception as error:
            # State and store may differ, and nobody knows by what: only a new lead is safe.
            raise LeadershipLostError(
                f"the state cannot be loaded ({error!r}): this server steps down, and loads it"
                " again before it leads"
            ) from error
        self._live.state.pass_wanted = wanted


def resolve(requests: Iterable[Request]) -> None:
    """Answer requests: they are stored."""
    for request in requests:
        request.resolve([])


def fail(requests: Iterable[Request], error: Exception) -> None:
    """Answer requests with an error: they are not stored, as far as is known."""
    for request in requests:
        request.fail(error)
