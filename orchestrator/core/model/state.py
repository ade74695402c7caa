"""The state of the core: all entities that are not over, by id, and indexes over them.

A decision about a run must not look at the whole fleet, so each question that handlers ask often
(`workers_of`, `places_of`, `next_timer` …) has an index. The indexes are kept by `put` and `forget`
alone, and are made anew when the state is loaded; only the entities are stored.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from jobs.shards import Shards
from orchestrator.core.model import away
from orchestrator.core.model.derived import Derived
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Fleet,
    Incident,
    Node,
    Queue,
    Run,
    Worker,
)
from orchestrator.core.model.records import MAINTENANCE
from orchestrator.core.model.states import (
    TERMINAL_RUN_STATES,
    IncidentState,
    NodeState,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.scheduling.node_table import NodeTable


class Deadline(NamedTuple):
    """A timer of a run, in the order in which deadlines are handled: the earliest first."""

    due: dt.datetime
    run: str
    timer: Timer
    subject: str


class State:
    """Entities by id, and the indexes over them.

    Warning: read it anywhere in the controller's process between turns; change it only in a turn,
    by :class:`orchestrator.core.turn.Turn`, whose methods end in :meth:`put`. The controller alone
    calls `take_changes`, `forget` and `recall`, between turns. A write to one of the dictionaries
    past `put` breaks an index and is not stored; a view or a handler must never make one. Not safe
    for threads: see :func:`orchestrator.core.model.detached.detached`.
    """

    def __init__(self, entities: Iterable[Entity] = ()) -> None:
        self.runs: dict[str, Run] = {}
        self.attempts: dict[str, Attempt] = {}
        """Newest attempt by run id."""
        self.workers: dict[str, Worker] = {}
        self.nodes: dict[str, Node] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.incidents: dict[str, Incident] = {}
        self.queues: dict[str, Queue] = {}
        self.fleet = Fleet()
        self.pass_wanted: str | None = None
        """The event since which the scheduler should look again; not stored: who loads looks."""
        self._workers_of: dict[str, dict[str, None]] = defaultdict(dict)
        self._workers_on: dict[str, dict[str, None]] = defaultdict(dict)
        self._checkpoints_of: dict[str, dict[str, None]] = defaultdict(dict)
        self._incidents_of: dict[str, dict[str, None]] = defaultdict(dict)
        self.derived = Derived()  # of runs that have not changed since
        self._node_table: NodeTable | None = None
        self._maintained: set[str] = set()
        """Nodes with planned maintenance."""
        self._changes: dict[tuple[str, str], Entity] = {}
        self._shards: list[tuple[str, Shards]] = []
        self._places: dict[str, dict[str, int]] = {}
        """By run: the place of each worker among the seats of the newest attempt."""
        self._faulted: dict[str, None] = {}
        """Nodes that faults are held against, or whose machines told of something."""
        self._launching: dict[str, set[str]] = defaultdict(set)
        """By run: workers that have not joined."""
        self._silent: dict[str, None] = {}
        """Workers out of contact."""
        self._timers: list[Deadline] = []
        """A heap of all deadlines ever set; those cancelled since are skipped as they surface."""
        self._over: list[Entity] = []
        """Workers, checkpoints, incidents and runs that came to their end since `forget`."""
        for entity in entities:
            self.put(entity)
        self.take_changes()

    @property
    def changed(self) -> bool:
        """True if anything was put since the changes were last taken."""
        return bool(self._changes or self._shards)

    def put(self, entity: Entity) -> None:
        """Add or replace an entity, and remember it for `take_changes`.

        Does not check transitions: :class:`orchestrator.core.turn.Turn` does. An entity that is put
        twice before its changes are taken is stored once, as it was last.
        """
        match entity:
            case Run():
                key = entity.id
                self._put_run(entity)
            case Attempt():
                key = entity.id
                self._note_seats(self.attempts.get(entity.run), entity)
                self.attempts[entity.run] = entity
            case Worker():
                key = entity.id
                self._put_worker(entity)
            case Node():
                key = entity.id
                self._put_node(entity)
            case Checkpoint():
                key = entity.id
                self.checkpoints[key] = entity
                self._checkpoints_of[entity.run][key] = None
            case Incident():
                key = entity.id
                self.incidents[key] = entity
                self._incidents_of[entity.run][key] = None
            case Queue():
                key = entity.name
                _put_queue(self.queues, entity)
            case Fleet():
                key = entity.id
                self.fleet = entity
        self._changes[type(entity).__name__, key] = entity
        self.derived.drop(_run_of(entity))
        if is_over(entity):
            self._over.append(entity)

    def _put_run(self, run: Run) -> None:
        if run.id not in self.runs:
            for timer, subjects in run.timers.items():
                for subject, due in subjects.items():
                    self.expect(Deadline(due, run.id, timer, subject))
        self.runs[run.id] = run

    def _put_node(self, node: Node) -> None:
        if _for_scheduling(self.nodes.get(node.id)) != _for_scheduling(node):
            self._node_table = None
        self.nodes[node.id] = node
        if node.faults or node.health.sightings:
            self._faulted[node.id] = None
        if node.maintenance or node.health.ask_at is not None:
            self._maintained.add(node.id)
        else:
            self._maintained.discard(node.id)

    def _put_worker(self, worker: Worker) -> None:
        before = self.workers.get(worker.id)
        if before is not None and before.node != worker.node:
            self._workers_on[before.node].pop(worker.id, None)
        self.workers[worker.id] = worker
        if worker.state is WorkerState.LOST:
            self._silent[worker.id] = None
        else:
            self._silent.pop(worker.id, None)
        if worker.state is WorkerState.LAUNCHING:
            self._launching[worker.run].add(worker.id)
        else:
            self._launching[worker.run].discard(worker.id)
        self._workers_of[worker.run][worker.id] = None
        self._workers_on[worker.node][worker.id] = None

    def expect(self, deadline: Deadline) -> None:
        """Note a deadline for `next_timer`; it counts while the run has it in its `timers`.

        Cancelling needs no call: the heap skips what the run no longer has.
        """
        heapq.heappush(self._timers, deadline)

    def _note_seats(self, old: Attempt | None, new: Attempt) -> None:
        if old is None or old.number != new.number or len(old.seats) != len(new.seats):
            self._places[new.run] = {seat.worker: i for i, seat in enumerate(new.seats)}

    def recall(self, incident: Incident) -> None:
        """Take back a resolved incident that is to be judged; nothing has changed by that."""
        self.incidents[incident.id] = incident
        self._incidents_of[incident.run][incident.id] = None
        self._over.append(incident)

    def recall_run(self, run: Run, checkpoints: Iterable[Checkpoint]) -> None:
        """Take back a run that has ended, for one request about its checkpoints.

        Nothing changes by that; the next `forget` drops the run and its checkpoints again.
        """
        self.runs[run.id] = run
        self.derived.drop(run.id)
        for checkpoint in checkpoints:
            self.checkpoints[checkpoint.id] = checkpoint
            self._checkpoints_of[run.id][checkpoint.id] = None
        self._over.append(run)

    def record_shards(self, checkpoint: str, shards: Shards) -> None:
        """Remember shards for the database; the core keeps only which ranks are recorded."""
        self._shards.append((checkpoint, shards))

    def take_changes(self) -> tuple[list[Entity], list[tuple[str, Shards]]]:
        """The entities changed since the last call, oldest first, and the shards recorded."""
        changes, shards = list(self._changes.values()), self._shards
        self._changes, self._shards = {}, []
        return changes, shards

    def places_of(self, run: str) -> Mapping[str, int]:
        """The place of each worker in the newest attempt's `seats`; empty before the first."""
        return self._places.get(run, {})

    def workers_of(self, run: str) -> list[Worker]:
        """Workers of a run in order of launch, with those that ended until `forget`."""
        return [self.workers[key] for key in self._workers_of.get(run, ())]

    def worker_count(self, run: str) -> int:
        """The number of workers of a run, with those that ended until `forget`; costs no loop."""
        return len(self._workers_of.get(run, ()))

    def joined(self, run: str) -> int:
        """The number of workers of a run that have joined and are not forgotten; costs no loop."""
        return len(self._workers_of.get(run, ())) - len(self._launching.get(run, ()))

    def workers_on(self, node: str) -> list[Worker]:
        """Workers on a node in order of launch, with those that ended until `forget`."""
        return [self.workers[key] for key in self._workers_on.get(node, ())]

    def suspects(self) -> Iterator[tuple[Node, bool]]:
        """Nodes that have faults on record or a silent worker, each with whether it is silent."""
        silent = {self.workers[worker].node for worker in self._silent}
        for name in dict.fromkeys((*self._faulted, *sorted(silent))):
            node = self.nodes.get(name)
            if node is not None and node.state is not NodeState.GONE:
                yield node, name in silent

    def checkpoints_of(self, run: str) -> list[Checkpoint]:
        """Checkpoints of a run in order of creation, with those deleted until `forget`."""
        return [self.checkpoints[key] for key in self._checkpoints_of.get(run, ())]

    def incidents_of(self, run: str) -> list[Incident]:
        """Incidents of a run in order of opening, with those resolved until `forget`."""
        return [self.incidents[key] for key in self._incidents_of.get(run, ())]

    def node_table(self, now: dt.datetime) -> NodeTable:
        """The nodes that take work or are away, in columns; made anew only when one changes."""
        if self._node_table is None or self._node_table.away_until <= now.timestamp():
            capacities = (away.capacity(node, now) for node in self.nodes.values())
            self._node_table = NodeTable(each for each in capacities if each is not None)
        return self._node_table

    def tenants(self) -> Iterator[tuple[Run, list[Worker]]]:
        """Runs that have workers, each with them; also runs that are over while theirs leave."""
        for run in self.hosts():
            there = [w for w in self.workers_of(run.id) if w.state is not WorkerState.ENDED]
            if there:
                yield run, there

    def hosts(self) -> Iterator[Run]:
        """Runs that have workers, also workers that ended until `forget`; costs no look at them."""
        return (
            self.runs[run] for run, keys in self._workers_of.items() if keys and run in self.runs
        )

    def live_runs(self) -> Iterator[Run]:
        """Runs that are not over."""
        return (run for run in self.runs.values() if run.state not in TERMINAL_RUN_STATES)

    def due_maintenance(self, now: dt.datetime) -> list[str]:
        """Nodes whose maintenance begins or is over, or whose asked action starts."""
        return [name for name in sorted(self._maintained) if _is_due(self.nodes[name], now)]

    def due_timers(self, now: dt.datetime) -> list[Deadline]:
        """Deadlines that have passed at `now`, the earliest first.

        They stay due until a turn has cancelled them: a controller that dies between two loses
        none.
        """
        due: list[Deadline] = []
        while (timer := self.next_timer()) is not None and timer.due <= now:
            if heapq.heappop(self._timers) not in due[-1:]:  # set, cancelled, and set again alike
                due.append(timer)
        for timer in due:  # they stand until the core has taken them
            heapq.heappush(self._timers, timer)
        return due

    def timers(self) -> Iterator[Deadline]:
        """All deadlines of runs that are not over."""
        for run in self.live_runs():
            for timer, subjects in run.timers.items():
                yield from (Deadline(due, run.id, timer, each) for each, due in subjects.items())

    def next_timer(self) -> Deadline | None:
        """The earliest deadline, passed or not; None if there is none."""
        while self._timers:
            first = self._timers[0]
            run = self.runs.get(first.run)
            if (
                run is not None
                and run.due(first.timer, first.subject) == first.due
                and run.state not in TERMINAL_RUN_STATES
            ):
                return first
            heapq.heappop(self._timers)
        return None

    def forget(self) -> list[Entity]:
        """Drop what is over and return it; the database keeps it.

        Called between any two turns, so that no decision depends on how long what is over is
        remembered. What it returns is written with the other changes: where that fails, the state
        is loaded again. Costs as much as has ended since the last call, not as much as there is.
        """
        over, self._over = self._over, []
        for entity in over:
            match entity:
                case Worker():
                    self.workers.pop(entity.id, None)
                    self._workers_of[entity.run].pop(entity.id, None)
                    self._workers_on[entity.node].pop(entity.id, None)
                case Checkpoint():
                    self.checkpoints.pop(entity.id, None)
                    self._checkpoints_of[entity.run].pop(entity.id, None)
                case Incident():
                    self.incidents.pop(entity.id, None)
                    self._incidents_of[entity.run].pop(entity.id, None)
        for run in dict.fromkeys(_run_of(e) for e in over if _run_of(e)):  # "": of nodes
            self.derived.drop(run)
            owner = self.runs.get(run)
            if owner is None or (is_over(owner) and not self._workers_of.get(run)):
                self._forget_run(run)
        return over

    def _forget_run(self, run: str) -> None:
        for key in self._checkpoints_of.pop(run, {}):
            del self.checkpoints[key]
        for key in self._incidents_of.pop(run, {}):
            del self.incidents[key]
        self._workers_of.pop(run, None)
        self._launching.pop(run, None)
        self._places.pop(run, None)
        self.attempts.pop(run, None)
        self.runs.pop(run, None)


def _put_queue(queues: dict[str, Queue], queue: Queue) -> None:
    if queue.removed:
        queues.pop(queue.name, None)
    else:
        queues[queue.name] = queue


def _run_of(entity: Entity) -> str:
    """The run that an entity is, or belongs to; "": to none."""
    return entity.id if isinstance(entity, Run) else getattr(entity, "run", "")


def _for_scheduling(node: Node | None) -> tuple[object, ...]:
    """The fields of a node that the scheduler reads."""
    return () if node is None else (node.state, node.capacity, node.left_at, node.by)


def _is_due(node: Node, now: dt.datetime) -> bool:
    if node.health.ask_at is not None and node.health.ask_at <= now:
        return True
    drained = node.by == MAINTENANCE or node.state in {NodeState.DRAINING, NodeState.GONE}
    return any(w.ends <= now or (w.begins <= now and not drained) for w in node.maintenance)


def is_over(entity: Entity) -> bool:
    """True if nothing will ever be decided about the entity again: it can be forgotten."""
    match entity:
        case Run():
            return entity.state in TERMINAL_RUN_STATES
        case Worker():
            return entity.state is WorkerState.ENDED
        case Checkpoint():
            return entity.removed_at is not None
        case Incident():
            return entity.state is IncidentState.RESOLVED
    return False
