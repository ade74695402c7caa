"""One transaction: the events that go into it, and what is written down of them.

The problem: a transaction takes many events, and which event comes next depends on what the core
made of the one before (a milestone moves as the core handles a step; a rank's exit must find the
core knowing the last step). After a failure of the core the same events are handled again, on a
state that was loaded anew, without the one that failed.

The design: `TransactionEvents` hands out one event at a time and looks at the live state each
time. `TransactionRecord` collects journal, outbox and findings, and makes the batch.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import structlog

from jobs.clock import Clock
from jobs.events import Event
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.journal_entries import (
    event_entry,
    finding_record,
    instruction_entry,
    run_of,
)
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.sample_events import SampleEvents
from orchestrator.controller.turn_queue import ReportRequest
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import EventSetAside, FindingRaised, SchedulingPassDue
from orchestrator.core.messages.instructions import Instruction, Record
from orchestrator.core.model.entities import Attempt, Entity
from orchestrator.core.model.state import State
from orchestrator.database.port import (
    Batch,
    FindingRecord,
    JournalEntry,
    ShardRecord,
    Store,
    WorkerSamples,
)
from orchestrator.errors import (
    BabysitError,
    DatabaseFullError,
    InvariantError,
    LeadershipLostError,
)

_log = structlog.get_logger(__name__)
DATABASE_RETRY_SECONDS = 0.5
STUCK_SECONDS = 60.0
"""A leader that cannot store anything for this time steps down, though it may renew its lease: that
takes another connection, and another server may have better ones."""
STORE_TRIES = 20
"""Tries of a transaction over which the store fails by a defect, before its events are at fault."""
_EVENTS_REFUSED = 3
SetAside = Callable[[Event], EventSetAside]
"""Makes the event that takes the place of one over which the core fails."""


Part = tuple[SampleEvents | None, Sequence[Event]]
"""The events that samples mean, which come first, and events of agents or of others."""


class TransactionEvents:
    """The events of one transaction, handed out one at a time; they can be gone through again.

    Args:
        parts: What agents reported or somebody asked for, in order.
        live: Where the progress of attempts comes from, which the core must know before an event
            that may end them. None: the events are handed out as they are.
    """

    def __init__(self, parts: Iterable[Part] = (), live: LiveState | None = None) -> None:
        self._live = live
        self._parts = deque(parts)
        self._samples: SampleEvents | None = None
        self._reported: deque[Event] = deque()
        self._ready: deque[Event] = deque()
        """An event with the progress that comes before it, not handed out yet."""
        self._taken: list[Event] = []
        """All that was handed out, with what was set aside replaced."""
        self._again: deque[Event] = deque()
        """Events that were handed out before a failure, and are to be handled once more."""
        self._current: Event | None = None
        self._failed: list[Event] = []
        """Events over which the core has failed once."""
        self._all_handled = False

    @classmethod
    def of(cls, *events: Event) -> Self:
        """Events that no agent reported, as they are."""
        return cls([(None, events)])

    def __bool__(self) -> bool:
        return bool(self._taken)

    def next(self) -> Event | None:
        """The next event, by the live state as it is now; None: all are handled.

        Call it only when the event before has been handled.
        """
        self._current = None
        if self._again:
            self._current = self._again.popleft()
        elif (drawn := self._draw()) is not None:
            self._taken.append(drawn)
            self._current = drawn
        self._all_handled = self._current is None
        return self._current

    def _draw(self) -> Event | None:
        if not self._ready:
            event = self._next_reported()
            if event is None:
                return None
            self._ready.append(event)  # first: it must not be lost if its progress fails
            if self._live is not None:
                self._ready.extendleft(reversed(self._live.progress_events(event)))
        return self._ready.popleft()

    def _next_reported(self) -> Event | None:
        while True:
            if self._samples is not None and self._live is not None:
                attempt = self._live.state.attempts.get(self._samples.run)
                if (event := self._samples.next(attempt)) is not None:
                    return event
            self._samples = None
            if self._reported:
                return self._reported.popleft()
            if not self._parts:
                return None
            self._samples, events = self._parts.popleft()
            self._reported.extend(events)

    def rewind(self) -> None:
        """Begin again with the first event, after a failure that no event has caused."""
        self._current, self._all_handled = None, False
        self._again = deque(self._taken)

    def try_again(self, set_aside: SetAside) -> bool:
        """After a failure: begin again with the first event.

        An event that failed is handled once more, as the state in memory may have been at fault. If
        it fails again, the event is set aside: `EventSetAside` takes its place, and nothing takes
        the place of an `EventSetAside` that fails itself. Where the making of an event failed, the
        rest of the samples means nothing to the core, or an event goes without its progress. So
        repeating this call comes to an end.

        Returns:
            False when all events were handled: what failed came after.
        """
        if self._all_handled:
            return False
        failed = self._current
        if failed is None:
            if not self._ready:
                self._samples = None
        elif failed in self._failed or isinstance(failed, EventSetAside):
            place = self._taken.index(failed)
            self._taken[place : place + 1] = _in_place_of(failed, set_aside)
        else:
            self._failed.append(failed)
        self._current = None
        self._again = deque(self._taken)
        return True

    def after_refusal(self, refused: int, set_aside: SetAside) -> TransactionEvents:
        """The events to be handled next, after the database refused to write what these led to.

        A report is written again as it is (`refused` is 1), then without its samples (2), which
        the caller sees to, then with its events set aside (3), and at last without anything.
        """
        if refused < _EVENTS_REFUSED:
            return TransactionEvents.of(*self._taken)
        if refused > _EVENTS_REFUSED:
            return TransactionEvents()
        return TransactionEvents.of(
            *(aside for event in self._taken for aside in _in_place_of(event, set_aside))
        )


def _in_place_of(event: Event, set_aside: SetAside) -> list[Event]:
    return [] if isinstance(event, EventSetAside) else [set_aside(event)]


def event_set_aside(events: EventFactory, event: Event, *, error: BaseException) -> EventSetAside:
    """The event that takes the place of one over which the core failed."""
    made = events.make(
        EventSetAside,
        run=getattr(event, "run", None),
        event=event.kind,
        body=event.model_dump(mode="json"),
        reason=repr(error),
    )
    assert isinstance(made, EventSetAside)  # noqa: S101 (for mypy: the factory made the kind)
    return made


def sameness(event: Event) -> str:
    """A text that is equal for an event of the controller and for the same event made again."""
    return event.model_dump_json(exclude={"id", "at", "cause", "reason"})


def samples_of(requests: Iterable[ReportRequest]) -> list[WorkerSamples]:
    """The samples of reports, of all their ranks; once, where a report came twice."""
    once = {(request.worker, request.report.sequence): request for request in requests}
    return [
        WorkerSamples(
            run=request.run,
            attempt=request.report.attempt,
            ranks=request.report.samples,
            worker=request.worker,
            sequence=request.report.sequence,
        )
        for request in once.values()
        if request.report.samples
    ]


@dataclasses.dataclass(slots=True)
class TransactionRecord:
    """The rows that one transaction adds to the database, besides the changes of the state."""

    instructions: list[Instruction] = dataclasses.field(default_factory=list)
    journal: list[JournalEntry] = dataclasses.field(default_factory=list)
    findings: list[FindingRecord] = dataclasses.field(default_factory=list)
    over: list[Entity] = dataclasses.field(default_factory=list)
    """Entities that the state has forgotten between the events."""

    def play(self, state: State, events: TransactionEvents, clock: Clock) -> None:
        """Have the core handle events one after the other, and write down what it decides.

        The state forgets what is over between two events, as it does between two transactions: what
        the core decides must not depend on which events happened to arrive together, or the journal
        would not replay. A scheduling pass that changes nothing leaves no trace: it runs very
        often.
        """
        for place, event in enumerate(iter(events.next, None)):
            if place:
                self.over.extend(state.forget())
            now = clock.now()
            run = run_of(event, state)
            decided = handle(state, event, now)
            if decided or state.changed or not isinstance(event, SchedulingPassDue):
                self.add(event, decided, now, run)

    def add(
        self, event: Event, decided: Sequence[Instruction], now: dt.datetime, run: str | None
    ) -> None:
        """Write down an event about a run, handled at `now`, and the instructions it led to."""
        self.journal.append(event_entry(event, now, run))
        self.journal.extend(instruction_entry(i, event, now) for i in decided)
        self.instructions.extend(decided)
        if isinstance(event, FindingRaised):
            self.findings.append(finding_record(event, now))
        for instruction in decided:
            _log.info(instruction.kind, run=instruction.run, reason=instruction.reason)

    def __bool__(self) -> bool:
        return bool(self.journal)

    @property
    def outbox(self) -> list[Instruction]:
        """The instructions that have something to carry out: all but records."""
        return [i for i in self.instructions if not isinstance(i, Record)]

    @property
    def set_aside(self) -> list[str]:
        """Kinds of the events that were set aside."""
        name = EventSetAside.model_fields["kind"].default
        return [entry.payload["event"] for entry in self.journal if entry.name == name]

    def batch(self, state: State) -> Batch:
        """Everything that the core has decided, to be written in one transaction.

        Takes the changes out of the state: a batch that is not written is lost, and the state must
        be loaded again.
        """
        entities, shards = state.take_changes()
        return Batch(
            entities=entities,
            shards=[
                ShardRecord(checkpoint=key, shard=report)
                for key, columns in shards
                for report in columns.reports()
            ],
            journal=self.journal,
            outbox=self.outbox,
            findings=self.findings,
        )


def runs_of(batch: Batch) -> set[str]:
    """The runs whose attempts a batch changes: their samples are stored with it."""
    return {entity.run for entity in batch.entities if isinstance(entity, Attempt)}


async def commit_when_possible(
    store: Store,
    batch: Batch,
    epoch: int,
    clock: Clock,
    trouble: DatabaseTrouble,
) -> None:
    """Write a batch, however long it takes the database to come back.

    Whatever the store raises is its own failure, never that of the events: the batch is kept, and
    written again. Only what the database says of the batch itself is final.

    Retries are safe where the database does not say whether a commit took effect: journal ids and
    report sequences are written once.

    Raises:
        LeadershipLostError: Another leads now, and nothing was written; or this server could not
            store anything for STUCK_SECONDS, and leads no more.
        InvariantError: The batch breaks an invariant, or cannot be written in STORE_TRIES tries
            by a defect of the store.
    """
    since = clock.monotonic()
    for failures in itertools.count(1):
        try:
            refused = await store.commit(batch, epoch=epoch)
        except (LeadershipLostError, InvariantError):
            raise
        except Exception as error:
            if not isinstance(error, BabysitError):
                # The store's own failure, not the core's: it may pass like the others.
                if failures == 1:
                    _log.exception("transaction failed, will retry; please report this")
                if failures >= STORE_TRIES:
                    raise InvariantError(f"the transaction cannot be written: {error!r}") from error
            full = isinstance(error, DatabaseFullError)
            trouble.failed(str(error) or repr(error), clock.monotonic(), full=full)
            _log.warning("transaction waits for the database, will retry", error=str(error))
            if not full and clock.monotonic() - since >= STUCK_SECONDS:
                raise LeadershipLostError(
                    f"nothing could be stored for {STUCK_SECONDS:.0f} s ({error}): this server"
                    " steps down, and another one may do better"
                ) from error
            await clock.sleep(DATABASE_RETRY_SECONDS)
        else:
            trouble.over()
            if refused:
                _log.info("samples of an older attempt dropped", count=refused)
            return
