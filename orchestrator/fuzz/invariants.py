"""Invariants checked at every transaction: the database against its expected content.

:attr:`Invariants.stored` is kept from what transactions meant to write, in the order in which they
took effect, so a row that the database loses, doubles or changes is noticed. The invariants of
single turns are in :mod:`orchestrator.fuzz.turn_invariants`, those of scheduling in
:mod:`orchestrator.fuzz.placement_invariants`.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from babysit.wire import Tier
from jobs.events import Report
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.entities import Attempt, Checkpoint, Entity, Incident, Run, Worker
from orchestrator.core.model.state import State, is_over
from orchestrator.core.model.states import AttemptState, Trust, WorkerState
from orchestrator.database.port import Batch, JournalEntry, Snapshot
from orchestrator.fuzz import placement_invariants, turn_invariants
from orchestrator.fuzz.recording_store import Intent, ReceiptIntent, TurnIntent


class Truth(Protocol):
    """The true state of the world, which the database may not know."""

    def seconds(self) -> float:
        """Virtual seconds."""

    def carried_out(self, instruction: Instruction) -> bool:
        """True if the addressee of an instruction, an agent or the cluster, has received it."""

    def in_contact(self, worker: str) -> bool:
        """True if an agent lives and can be reached."""

    def acknowledged(self, worker: str) -> int:
        """The sequence up to which an agent believes that its reports are stored."""

    def left_behind(self, checkpoint: Checkpoint) -> bool:
        """True if shards of a checkpoint are there, and none of a later attempt at its place."""

    def damaged(self, checkpoint: Checkpoint) -> bool:
        """True if a checkpoint does not read back as it was written."""


@dataclasses.dataclass(slots=True)
class Order:
    """An entry of the outbox."""

    instruction: Instruction
    since: float
    done: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Everything that was committed up to a time, to go back to when a backup is restored."""

    entities: tuple[Entity, ...]
    attempts: dict[tuple[str, int], Attempt]
    journal: dict[str, str]
    outbox: dict[str, Order]
    sequences: dict[str, int]
    samples: dict[tuple[str, int, int], int]


class Invariants:
    """Checks transactions against what is really so, and says which invariant is broken.

    Attributes:
        stored: Everything that was ever committed, over or not.
        broken: The first invariant found broken; empty: none.
        writes: How many transactions have taken effect.
        right_clocks: True if no wall clock was ever wrong, so that seconds can be counted.
        went_back: True if transactions were ever lost by the restore of a backup.
    """

    def __init__(self, raw: sqlite3.Connection, truth: Truth, trace: Callable[[str], None]) -> None:
        self.stored = State()
        self.broken = ""
        self.right_clocks, self.went_back = True, False
        self.turns = self.writes = 0
        self._raw, self._truth, self._trace = raw, truth, trace
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._journal: dict[str, str] = {}
        self._outbox: dict[str, Order] = {}
        self._reports: dict[tuple[str, int], Report] = {}
        self._sequences: dict[str, int] = {}
        self._samples: defaultdict[tuple[str, int, int], int] = defaultdict(int)
        self._last: Batch | None = None

    def remember(self) -> Memory:
        """Everything that is committed now."""
        stored = self.stored
        tables = (stored.runs, stored.workers, stored.nodes, stored.checkpoints)
        more = (stored.incidents, stored.queues)
        return Memory(
            entities=(
                *(entity for table in (*tables, *more) for entity in table.values()),
                *stored.attempts.values(),
                stored.fleet,
            ),
            attempts=dict(self._attempts),
            journal=dict(self._journal),
            outbox={key: dataclasses.replace(order) for key, order in self._outbox.items()},
            sequences=dict(self._sequences),
            samples=dict(self._samples),
        )

    def go_back(self, memory: Memory) -> None:
        """The database is what it was: what was committed since is lost."""
        self.went_back = True
        self.stored = State(memory.entities)
        self._attempts, self._journal = dict(memory.attempts), dict(memory.journal)
        self._outbox = {key: dataclasses.replace(o) for key, o in memory.outbox.items()}
        self._sequences = dict(memory.sequences)
        self._samples = defaultdict(int, memory.samples)
        self._last = None
        self.writes += 1

    def breaks(self, sentence: str) -> None:
        """An invariant is broken, as the sentence says; the first one counts."""
        if not self.broken:
            self.broken = sentence
            self._trace(f"BROKEN: {sentence}")

    # --- what really happens --------------------------------------------------------------------

    def reported(self, worker: str, report: Report) -> None:
        """An agent has made a report, which must be stored once."""
        self._reports[worker, report.sequence] = report

    def _is_of_another(self, attempt: Attempt, worker: str) -> bool:
        """True if a worker runs another attempt of the same number, begun in what is lost.

        The gang of an attempt that was taken over is not known until all of its agents are heard.
        """
        seated = any(seat.worker == worker for seat in attempt.seats)
        return worker not in self.stored.workers or not (seated or attempt.guessed)

    def ranks_start(self, run: str, attempt: int, alive: Iterable[tuple[int, str]]) -> None:
        """Ranks of an attempt begin to live; so do those of others, which must be fenced.

        A restored database knows nothing of an attempt that began after the backup, and only the
        agents of that attempt can tell. Its number may be given twice, so that an attempt is known
        by its seats too. Of those that the database knows, the invariant holds.
        """
        for other, worker in alive:
            entity = self._attempts.get((run, other))
            if self.went_back and (entity is None or self._is_of_another(entity, worker)):
                continue
            if entity is None or entity.state is not AttemptState.FENCED:
                self.breaks(f"ranks of attempt {attempt} of {run} start; {other} is alive still")

    # --- transactions ---------------------------------------------------------------------------

    def committing(self, intent: Intent) -> None:
        """A transaction takes effect."""
        self.writes += intent is not None
        match intent:
            case TurnIntent():
                self._check_epoch(intent.epoch)
                self._turn(intent.batch)
            case ReceiptIntent():
                self._check_epoch(intent.epoch)
                for key in intent.ids:
                    self._receipt(self._outbox[key])

    def _receipt(self, order: Order) -> None:
        order.done = True
        for part in turn_invariants.parts(order.instruction):
            worker = self.stored.workers.get(getattr(part, "worker", ""))
            if worker is not None and worker.state is WorkerState.ENDED:
                continue  # no agent will ever take it
            if not self._truth.carried_out(part):
                self.breaks(f"{part.kind} {part.id} is noted as done, and was not ({part.reason})")

    def _check_epoch(self, epoch: int) -> None:
        (current,) = self._raw.execute("SELECT epoch FROM leader").fetchone()
        if epoch != current:
            self.breaks(f"a leader of epoch {epoch} writes in epoch {current}")

    def _turn(self, batch: Batch) -> None:
        if batch is self._last:
            return  # written already, but the answer was lost: once more changes nothing
        self._last = batch
        self.turns += 1
        for sentence in self._condemned(batch):
            self.breaks(sentence)
        for sentence in turn_invariants.before(self.stored, batch):
            self.breaks(sentence)
        new_runs = placement_invariants.NewRuns.among(self.stored)
        self._enter_journal(batch)
        self._enter_sequences(batch)
        self._enter_samples(batch)
        for entity in batch.entities:
            self._enter(entity)
        self.stored.take_changes()
        now = self._truth.seconds()
        self._outbox.update((each.id, Order(each, now)) for each in batch.outbox)
        for sentence in self._after(batch, new_runs):
            self.breaks(sentence)

    def _enter(self, entity: Entity) -> None:
        if isinstance(entity, Attempt):
            self._attempts[entity.run, entity.number] = entity
            newest = self.stored.attempts.get(entity.run)
            if newest is not None and newest.number > entity.number:
                return
        self.stored.put(entity)

    def _after(self, batch: Batch, new_runs: placement_invariants.NewRuns) -> Iterator[str]:
        clocks = self.right_clocks
        yield from turn_invariants.after(self.stored, batch, count_seconds=clocks)
        yield from placement_invariants.after(self.stored, batch, new_runs, clocks=clocks)
        yield from turn_invariants.one_live_attempt(self._attempts.values())
        for entity in batch.entities:
            if isinstance(entity, Checkpoint) and entity.trust in turn_invariants.WHOLE:
                query = "SELECT count(*) FROM shards WHERE checkpoint = ?"
                (shards,) = self._raw.execute(query, (entity.id,)).fetchone()
                if shards != entity.world_size:
                    yield f"{entity.id} is {entity.trust} with {shards} shards of it on record"

    def _condemned(self, batch: Batch) -> Iterator[str]:
        """Only damage makes a checkpoint bad, which is final; everything else is a mark."""
        for entity in batch.entities:
            if isinstance(entity, Checkpoint) and entity.trust is Trust.BAD:
                old = self.stored.checkpoints.get(entity.id)
                new = old is None or old.trust is not Trust.BAD
                if new and not self._truth.damaged(entity):
                    yield f"{entity.id} is sound, and becomes bad: {entity.reason}"

    def _enter_journal(self, batch: Batch) -> None:
        for entry in batch.journal:
            if entry.id in self._journal:
                self.breaks(f"{entry.name} {entry.id} is handled twice")
            self._journal[entry.id] = entry.name
            self._trace(_line(entry.name, entry.run, entry.reason))
        (rows,) = self._raw.execute("SELECT count(*) FROM journal").fetchone()
        if rows != len(self._journal):
            self.breaks(f"the journal has {rows} entries, of {len(self._journal)} written")

    def _enter_sequences(self, batch: Batch) -> None:
        written = {name for entry in batch.journal for name in _names(entry)}
        for worker, sequence in batch.sequences.items():
            # What was acknowledged and is not stored was lost with a database, and never comes.
            before = max(self._sequences.get(worker, 0), self._truth.acknowledged(worker))
            for number in range(before + 1, sequence + 1):
                count = len(self._reports[worker, number].events)
                ids = [f"{worker}.{number}.{place}" for place in range(count)]  # the reader's ids
                said = {each for each in ids if f"{each}.unreadable" not in written}
                if missing := said - written:
                    self.breaks(f"events of {worker} are left out: {', '.join(sorted(missing))}")

    def _enter_samples(self, batch: Batch) -> None:
        """Every rank's samples are stored once at most, and all those of the rank that speaks."""
        touched: set[tuple[str, int]] = set()
        here = {(each.worker, each.sequence) for each in batch.samples}
        for worker, sequence in batch.sequences.items():
            run = self.stored.runs[self.stored.workers[worker].run]
            known = self._truth.acknowledged(worker)
            for number in range(self._sequences.get(worker, 0) + 1, sequence + 1):
                if number <= known and (worker, number) not in here:
                    continue
                report = self._reports[worker, number]
                if report.attempt == run.attempt:
                    for rank in report.samples:
                        self._samples[run.id, report.attempt, rank.rank] += len(rank.step)
                        touched.add((run.id, report.attempt))
            self._sequences[worker] = max(sequence, self._sequences.get(worker, 0))
        for run_id, attempt in touched:
            self._check_samples(run_id, attempt)

    def _check_samples(self, run: str, attempt: int) -> None:
        query = "SELECT rank, sum(count) FROM samples WHERE run = ? AND attempt = ? GROUP BY rank"
        stored = dict(self._raw.execute(query, (run, attempt)).fetchall())
        told = {
            rank: n for (of, at, rank), n in self._samples.items() if (of, at) == (run, attempt)
        }
        speaker = min((rank for rank, count in told.items() if count), default=None)
        for rank, count in told.items():
            here = stored.get(rank, 0)
            if here > count or (rank == speaker and here < count):
                self.breaks(
                    f"attempt {attempt} of {run} has {here} samples of rank {rank} stored,"
                    f" of {count} reported"
                )

    # --- what a new leader finds ----------------------------------------------------------------

    def loaded(self, snapshot: Snapshot) -> None:
        """Check that the rows read equal the rows written."""
        read = {id(entity): entity for entity in snapshot.entities()}.values()
        for entity in read:
            if isinstance(entity, Run | Worker | Attempt | Checkpoint) and not self._known(entity):
                self.breaks(f"a new leader finds {entity.id} otherwise than it was written")
        found = {entity.id for entity in read if isinstance(entity, Run | Worker)}
        alive: list[Run | Worker] = [*self.stored.runs.values(), *self.stored.workers.values()]
        for written in alive:
            if not is_over(written) and written.id not in found:
                self.breaks(f"a new leader does not find {written.id}")
        left = [key for key, order in self._outbox.items() if not order.done]
        if [each.id for each in snapshot.outbox] != left:
            self.breaks("a new leader finds another outbox than was left")
        for worker, sequence in snapshot.sequences.items():
            if sequence != self._sequences.get(worker, 0):
                self.breaks(f"a new leader takes up {worker} after its report {sequence}")

    def _known(self, entity: Run | Worker | Attempt | Checkpoint) -> bool:
        match entity:
            case Run():
                return self.stored.runs.get(entity.id) == entity
            case Worker():
                return self.stored.workers.get(entity.id) == entity
            case Attempt():
                return self._attempts.get((entity.run, entity.number)) == entity
            case Checkpoint():
                return self.stored.checkpoints.get(entity.id) == entity

    def overdue(self, seconds: float) -> Iterator[str]:
        """Instructions that an agent in contact should have had by now, in sentences."""
        oldest = self._truth.seconds() - seconds
        for order in self._outbox.values():
            if order.done or order.since > oldest:
                continue
            for part in turn_invariants.parts(order.instruction):
                worker = self.stored.workers.get(getattr(part, "worker", ""))
                if (
                    worker is not None
                    and worker.state is WorkerState.READY
                    and self._truth.in_contact(worker.id)
                    and not self._truth.carried_out(part)
                ):
                    yield f"{worker.id} has not got {part.kind} {part.id} ({part.reason})"

    # --- the end --------------------------------------------------------------------------------

    def unfinished(self) -> Iterator[str]:
        """Sentences about unfinished work; none at the end of a run."""
        for run in self.stored.live_runs():
            yield f"{run.id} is {run.state} still: {run.reason}"
        for worker in self.stored.workers.values():
            if worker.state is not WorkerState.ENDED:
                yield f"{worker.id} is {worker.state} still: {worker.reason}"
        for key, order in self._outbox.items():
            if not order.done:
                yield f"instruction {key} is not carried out"

    def audit(self) -> None:
        """The journal holds what was written, in its order, and nothing else."""
        rows = self._raw.execute("SELECT id, name FROM journal ORDER BY position").fetchall()
        if rows != list(self._journal.items()):
            self.breaks("the journal is not what was written to it")
        for incident in self.stored.incidents.values():
            self._check_incident(incident)
        for checkpoint in self.stored.checkpoints.values():
            gone = checkpoint.removed_at is not None and checkpoint.tier is Tier.DIRECTORY
            if gone and self._truth.left_behind(checkpoint):
                self.breaks(f"{checkpoint.id} is said to be removed, and is there still")

    def _check_incident(self, incident: Incident) -> None:
        query = "SELECT state FROM incidents WHERE id = ?"
        if self._raw.execute(query, (incident.id,)).fetchone() != (incident.state.value,):
            self.breaks(f"incident {incident.id} is stored otherwise than it was written")


def _names(entry: JournalEntry) -> list[str]:
    """The event itself, and those that were put together in it."""
    return [entry.id, *entry.payload.get("stands_for", ())]


def _line(name: str, run: str | None, reason: str) -> str:
    return f"    {name} {run or ''} {reason}".rstrip()
