"""One turn, as it is written down: journal, outbox, findings, and what changed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog

from jobs.clock import Clock
from jobs.events import Event, WorkerEvent
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import FindingRaised, SchedulingPassDue
from orchestrator.core.messages.instructions import Instruction, Record
from orchestrator.core.model.state import State
from orchestrator.database.port import (
    Batch,
    FindingRecord,
    JournalEntry,
    ShardRecord,
    Store,
    WorkerSamples,
)
from orchestrator.errors import DatabaseUnavailableError

_log = structlog.get_logger(__name__)
DATABASE_RETRY_SECONDS = 0.5


class Events:
    """The events of one turn, drawn one by one. After a defect they can be gone through again."""

    def __init__(self, source: Iterable[Event]) -> None:
        self._source = iter(source)
        self._taken: list[Event] = []
        self._handled: Event | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Event]:
        for event in itertools.chain(self._taken.copy(), self._drawn()):
            self._handled = event
            yield event
            self._handled = None
        self._ended = True

    def __bool__(self) -> bool:
        return bool(self._taken)

    def _drawn(self) -> Iterator[Event]:
        for event in self._source:
            self._taken.append(event)
            yield event

    def leave_out(self) -> bool:
        """Leave out what was being handled (or made) when it failed.

        Returns:
            False when all were handled well: what failed came after.
        """
        if self._ended:
            return False
        if self._handled is not None:
            self._taken.remove(self._handled)
            self._handled = None
        return True


@dataclasses.dataclass(slots=True)
class TransactionRecord:
    """What one turn adds, besides the changes of the state."""

    instructions: list[Instruction] = dataclasses.field(default_factory=list)
    journal: list[JournalEntry] = dataclasses.field(default_factory=list)
    findings: list[FindingRecord] = dataclasses.field(default_factory=list)

    def play(self, state: State, events: Iterable[Event], clock: Clock) -> None:
        """Have the core handle events one after the other, and write down what it decides."""
        for event in events:
            now = clock.now()
            decided = handle(state, event, now)
            if decided or state.changed or not isinstance(event, SchedulingPassDue):
                self.add(event, decided, now)

    def add(self, event: Event, decided: Sequence[Instruction], now: dt.datetime) -> None:
        """An event, handled at `now`, and what it led to."""
        self.journal.append(_event_entry(event, now))
        self.journal.extend(_instruction_entry(i, event, now) for i in decided)
        self.instructions.extend(decided)
        if isinstance(event, FindingRaised):
            self.findings.append(_finding_record(event, now))
        for instruction in decided:
            _log.info(instruction.kind, run=instruction.run, reason=instruction.reason)

    def __bool__(self) -> bool:
        return bool(self.journal)

    @property
    def outbox(self) -> list[Instruction]:
        """The instructions that have something to carry out."""
        return [i for i in self.instructions if not isinstance(i, Record)]

    def batch(
        self, state: State, samples: WorkerSamples | None, sequences: Mapping[str, int]
    ) -> Batch:
        """Everything to be written in one transaction; takes the changes out of the state."""
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
            samples=[samples] if samples else (),
            sequences=sequences,
        )


async def commit_when_possible(store: Store, batch: Batch, epoch: int, clock: Clock) -> None:
    """Write a batch, however long it takes the database to come back.

    Raises:
        LeadershipLostError: Another leads now; nothing was written.
    """
    while True:
        try:
            refused = await store.commit(batch, epoch=epoch)
        except DatabaseUnavailableError as error:
            _log.warning("a turn waits for the database", error=str(error))
            await clock.sleep(DATABASE_RETRY_SECONDS)
        else:
            if refused:
                _log.info("samples of an older attempt refused", count=refused)
            return


def _event_entry(event: Event, now: dt.datetime) -> JournalEntry:
    """An event, as handled at `now`."""
    attempt = getattr(event, "attempt", None)
    reason = getattr(event, "reason", "")
    if isinstance(event, FindingRaised):
        reason = event.finding.reason
    return JournalEntry(
        id=event.id,
        at=now,
        run=getattr(event, "run", None),
        attempt=attempt,
        actor=f"worker:{event.worker}" if isinstance(event, WorkerEvent) else event.actor,
        kind="event",
        name=event.kind,
        cause=event.cause,
        reason=reason,
        payload=event.model_dump(mode="json"),
    )


def _finding_record(event: FindingRaised, now: dt.datetime) -> FindingRecord:
    """A finding, for its table."""
    finding = event.finding
    return FindingRecord(
        id=event.id,
        run=event.run,
        attempt=event.attempt,
        at=now,
        kind=finding.kind.value,
        severity=finding.severity.value,
        body=finding.model_dump(mode="json"),
    )


def _instruction_entry(instruction: Instruction, event: Event, now: dt.datetime) -> JournalEntry:
    """An instruction that `event` led to."""
    return JournalEntry(
        id=instruction.id,
        at=now,
        run=instruction.run,
        attempt=getattr(event, "attempt", None),
        actor="controller",
        kind="instruction",
        name=instruction.kind,
        cause=instruction.cause,
        reason=instruction.reason,
        payload=instruction.model_dump(mode="json"),
    )
