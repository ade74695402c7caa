"""One turn of the core: one event, one moment, and what it leads to.

A handler gets a turn and nothing else. It reads the state, changes it through the guarded methods
here, and adds instructions. Each change replaces an immutable entity by a new one, is checked
against the transition table of its kind, and is remembered for the database. So whatever a handler
does, the state never holds an illegal move, and nothing that is changed is forgotten when it is
stored.

Limits: a turn has no undo. A handler checks all that may be refused before it changes anything.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

from jobs.commands import Command
from jobs.events import Event
from monitors.types import Severity
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
    Instruction,
    Notify,
    Record,
    SendCommand,
)
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Fleet,
    Incident,
    Node,
    Run,
    Worker,
)
from orchestrator.core.model.state import Deadline, State
from orchestrator.core.model.states import (
    ATTEMPT_MOVES,
    INCIDENT_MOVES,
    NODE_MOVES,
    RUN_MOVES,
    TERMINAL_RUN_STATES,
    TRUST_MOVES,
    WORKER_MOVES,
    IncidentState,
    NodeState,
    RunState,
    WorkerState,
    check_move,
)
from orchestrator.core.model.vocabulary import IncidentKind, Timer
from orchestrator.core.policy import cascades, usage_history
from orchestrator.core.policy.scheduler_concerns import concerns_scheduler

_NOT_IN_THE_QUEUE = frozenset({RunState.HELD, *TERMINAL_RUN_STATES})
_SEEN_THROUGH_A_HOLD = frozenset({None, RunState.HELD, *TERMINAL_RUN_STATES})


class Turn:
    """The only way handlers read and change the state; it collects their instructions.

    Warning: a turn lasts for one call of `machine.handle`; only handlers that this call reached may
    use it. Nobody keeps it or an entity of it: entities are replaced, so a kept one grows stale.

    Attributes:
        state: Read it freely; change it through the methods below only.
        event: As it was sent, so of an agent perhaps not in the gang form that the handler gets.
        now: The controller's clock, UTC. `event.at` is the sender's and may be hours older.
        instructions: In the order in which they are to be carried out.
        schedule_wanted: The next pass may decide something. Set by changes of what a pass reads.
        holds_changed: Runs that were held or released in it; None: everything was.
        incidents_before: Incidents that changed, as they were before the turn; None: opened in it.
    """

    def __init__(self, state: State, event: Event, now: dt.datetime) -> None:
        self.state, self.event, self.now = state, event, now
        self.instructions: list[Instruction] = []
        self.schedule_wanted = False
        self.holds_changed: set[str | None] = set()
        self.incidents_before: dict[str, Incident | None] = {}

    # reading

    def run(self, run: str) -> Run:
        """The run as it is now: read it again after a change.

        Raises:
            KeyError: There is no such run, or it is forgotten. Handlers of events that bear a run
                may rely on it: the door has checked.
        """
        return self.state.runs[run]

    def attempt(self, run: str) -> Attempt | None:
        """The newest attempt of the run, live or ended; None before the first."""
        return self.state.attempts.get(run)

    def held(self, run: str) -> bool:
        """True if a hold stops automatic action for a run: its own, or the fleet's.

        A hold keeps neither a person from cancelling the run, nor a dead attempt from ending.
        """
        return self.state.fleet.hold is not None or self.run(run).state is RunState.HELD

    # changing: one guarded method for each kind of thing that has states

    def put(self, entity: Entity) -> None:
        """Store an entity that is new, or one without states (a queue, the fleet).

        No transition is checked: what has states is changed by the methods below.
        """
        if isinstance(entity, Fleet) and entity.hold != self.state.fleet.hold:
            self.holds_changed.add(None)
        self.state.put(entity)
        self.schedule_wanted |= not isinstance(entity, Checkpoint | Incident | Worker)

    def change_run(self, run: str, **changes: Any) -> Run:
        """Replace fields of a run.

        While a run is held, a new state goes to `held_from` and its reason is dropped: the hold
        stays, and the release goes on from there. Only the end of the run ends a hold without a
        release. A run that is held or over gives up its place in the queue (`claim`, `pending`).

        Raises:
            IllegalMoveError: The state may not follow the present one.
        """
        old = self.state.runs[run]
        if old.state is RunState.HELD and changes.get("state") not in _SEEN_THROUGH_A_HOLD:
            changes["held_from"] = changes.pop("state")
            changes.pop("reason", None)
        if changes.get("state") in _NOT_IN_THE_QUEUE:
            changes |= {"claim": None, "pending": None}
        new = dataclasses.replace(old, **changes)
        check_move(RUN_MOVES, old.state, new.state, f"run {run}", f"{old.reason} -> {new.reason}")
        self._store(old, new)
        return new

    def release_run(self, run: str, state: RunState, reason: str) -> Run:
        """End a hold; the run goes on in `state`, which its hold had covered.

        Raises:
            IllegalMoveError: `state` may not follow a hold.
        """
        old = self.state.runs[run]
        check_move(RUN_MOVES, old.state, state, f"run {run}", old.reason)
        new = dataclasses.replace(old, state=state, held_from=None, reason=reason)
        self._store(old, new)
        return new

    def change_attempt(self, run: str, **changes: Any) -> Attempt:
        """Replace fields of the newest attempt of a run; older attempts never change.

        Raises:
            IllegalMoveError: The state may not follow the present one.
        """
        old = self.state.attempts[run]
        new = dataclasses.replace(old, **changes)
        check_move(ATTEMPT_MOVES, old.state, new.state, f"attempt {old.id}", self.run(run).reason)
        self._store(old, new)
        return new

    def change_worker(self, worker: str, **changes: Any) -> Worker:
        """Replace fields of a worker. When it ends, its GPU time is booked on its project, once.

        Raises:
            IllegalMoveError: The state may not follow the present one.
        """
        old = self.state.workers[worker]
        new = dataclasses.replace(old, **changes)
        new = _stamped(old, new, self.now)
        check_move(WORKER_MOVES, old.state, new.state, f"worker {worker}", old.reason)
        self._store(old, new)
        if new.ended_at is not None and old.ended_at is None:
            run = self.state.runs[new.run]
            self.state.put(usage_history.booked(self.state.fleet, run, new, self.now))
        return new

    def change_node(self, node: str, **changes: Any) -> Node:
        """Replace fields of a node.

        Raises:
            IllegalMoveError: The state may not follow the present one.
        """
        old = self.state.nodes[node]
        new = dataclasses.replace(old, **changes)
        new = dataclasses.replace(new, left_at=_left_at(old, new, self.now))
        check_move(NODE_MOVES, old.state, new.state, f"node {node}", old.reason)
        self._store(old, new)
        return new

    def change_checkpoint(self, checkpoint: str, **changes: Any) -> Checkpoint:
        """Replace fields of a checkpoint.

        Raises:
            IllegalMoveError: The trust may not follow the present one; `bad` is final.
        """
        old = self.state.checkpoints[checkpoint]
        new = dataclasses.replace(old, **changes)
        check_move(TRUST_MOVES, old.trust, new.trust, f"checkpoint {checkpoint}", old.reason)
        self.state.put(new)
        return new

    def change_incident(self, incident: str, **changes: Any) -> Incident:
        """Replace fields of an incident.

        Raises:
            IllegalMoveError: The state may not follow the present one.
        """
        old = self.state.incidents[incident]
        new = dataclasses.replace(old, **changes)
        check_move(INCIDENT_MOVES, old.state, new.state, f"incident {incident}", old.reason)
        self.incidents_before.setdefault(incident, old)
        self.state.put(new)
        return new

    def _store(self, old: Entity, new: Entity) -> None:
        self.state.put(new)
        self.schedule_wanted |= concerns_scheduler(old, new)
        match old, new:
            case Run(), Run() if (old.state is RunState.HELD) != (new.state is RunState.HELD):
                self.holds_changed.add(new.id)

    # incidents

    def open_incident(
        self, run: Run | None, *, kind: IncidentKind, severity: Severity, reason: str, **fields: Any
    ) -> Incident:
        """Open an incident of the run's present attempt, or about nodes, and return it.

        Its id is that of the event, with `-2` for the next one of the turn, and so on, so that a
        replay gives the same ids. Opening does not notify anybody: `notify` does.
        """
        earlier = sum(before is None for before in self.incidents_before.values())
        suffix = f"-{earlier + 1}" if earlier else ""
        incident = Incident(
            id=f"{self.event.id}{suffix}",
            run=run.id if run else "",
            attempt=run.attempt if run else 0,
            kind=kind,
            severity=severity,
            reason=reason,
            opened_at=self.now,
            cascade=cascades.began_with(self.state, run, kind, self.now) if run else "",
            **fields,
        )
        self.incidents_before[incident.id] = None
        self.state.put(incident)
        return incident

    def resolve_incident(self, incident: str | None, how: str, **more: Any) -> None:
        """Resolve an incident, with more evidence. No effect on an unknown or a resolved one."""
        found = self.state.incidents.get(incident or "")
        if found is not None and found.state is not IncidentState.RESOLVED:
            end = {"resolved_at": self.now, "evidence": {**found.evidence, **more, "resolved": how}}
            self.change_incident(found.id, state=IncidentState.RESOLVED, **end)

    # timers

    def set_timer(self, run: str, timer: Timer, seconds: float, subject: str = "") -> None:
        """Have TimerFired follow after `seconds`, unless the timer is cancelled or set again.

        Each subject (a worker, an incident) has a timer of its own.
        """
        due, timers = self.now + dt.timedelta(seconds=seconds), self.run(run).timers
        self.change_run(run, timers={**timers, timer: {**timers.get(timer, {}), subject: due}})
        self.state.expect(Deadline(due, run, timer, subject))

    def cancel_timer(self, run: str, *timers: Timer, subject: str = "") -> None:
        """Forget timers of one subject. No effect if none is set, or if the run is over."""
        current = self.state.runs.get(run)
        if current is None or all(current.due(timer, subject) is None for timer in timers):
            return
        left = dict(current.timers)
        for timer in timers:
            others = {key: due for key, due in left.pop(timer, {}).items() if key != subject}
            if others:
                left[timer] = others
        self.change_run(run, timers=left)

    @property
    def next_id(self) -> str:
        """Id of the next instruction: the event's id, a dot, and its number in the turn from 1.

        The same event gives the same ids: an instruction carried out twice is not two.
        """
        return f"{self.event.id}.{len(self.instructions) + 1}"

    def emit(self, kind: type[Instruction], run: str | None, reason: str, **fields: Any) -> None:
        """Add an instruction; the turn gives it an id and cause. `run` None: the whole fleet."""
        self.instructions.append(
            kind(id=self.next_id, cause=self.event.id, run=run, reason=reason, **fields)
        )

    def record(self, run: str | None, reason: str) -> None:
        """Write a decision, or why there is none, into the journal; nothing is carried out."""
        self.emit(Record, run, reason)

    def send_command(
        self, worker: str, command: type[Command], why: str, *, attempt: int, **fields: Any
    ) -> None:
        """Send a command to one agent.

        Args:
            worker: Must exist; once it has ended, the outbox drops the command.
            command: The kind of command.
            why: For the journal, and for people.
            attempt: The fencing token: an agent that works for a newer attempt ignores the command.
            fields: The other fields of the command.
        """
        run = self.state.workers[worker].run
        order = command(id=self.next_id, attempt=attempt, **fields)
        self.emit(SendCommand, run, why, worker=worker, command=order)

    def broadcast(
        self,
        run: str,
        parts: Mapping[str, tuple[int, ...]],
        command: type[Command],
        why: str,
        **fields: Any,
    ) -> None:
        """Send one command to many agents of a run; nothing is sent to nobody.

        Args:
            run: Whose agents they are.
            parts: Ranks by worker, in the order of nodes; for a command with a field `ranks`.
            command: The kind of command.
            why: For the journal, and for people.
            fields: The fields of the command, its `attempt` among them.
        """
        if parts:
            order = command(id=self.next_id, **fields)
            ranks = tuple(parts.values()) if "ranks" in command.model_fields else ()
            self.emit(BroadcastCommand, run, why, workers=tuple(parts), ranks=ranks, command=order)

    def notify(
        self,
        run: str | None,
        severity: Severity,
        text: str,
        incident: str | None = None,
        *,
        kind: str = "",
        asks: bool = False,
    ) -> None:
        """Deliver a notice to people.

        Args:
            run: The run that the notice is about; None: the whole cluster.
            severity: How urgent the notice is.
            text: One sentence, with the name of the run.
            incident: Id of the incident behind it, if there is one.
            kind: What the notice is about, in one word; the kind of an incident goes before.
            asks: A remedy starts unless people answer.
        """
        fields: dict[str, Any] = {"severity": severity, "text": text, "incident": incident}
        fields |= _about(self.state.runs.get(run or ""), self.event, asks=asks)
        fields |= _of_incident(self.state.incidents.get(incident or ""), kind)
        self.emit(Notify, run, text, **fields)


def _about(run: Run | None, event: Event, *, asks: bool) -> dict[str, Any]:
    """The fields of a notice that say whom it concerns."""
    fields: dict[str, Any] = {"actor": event.actor, "asks": asks}
    if run is None:
        return fields
    spec = run.spec
    of_run = {"run_name": run.name, "project": spec.project, "queue": spec.queue}
    return {**fields, **of_run, "attempt": run.attempt, "channel": spec.notify.slack}


def _of_incident(incident: Incident | None, kind: str) -> dict[str, str]:
    """The fields of a notice that say what it is about."""
    if incident is None:
        return {"incident_kind": kind or "notice"}
    about = {"incident_kind": str(incident.kind), "cascade": incident.cascade}
    return about if incident.run else {**about, "subject": incident.subject}


def _stamped(old: Worker, new: Worker, now: dt.datetime) -> Worker:
    """The worker with the time at which it was stopped, or has ended, if that is now."""
    new = dataclasses.replace(new, stopping_at=now) if _stops(old, new) else new
    ends = new.state is WorkerState.ENDED and old.state is not new.state
    return dataclasses.replace(new, ended_at=now) if ends else new


def _stops(old: Worker, new: Worker) -> bool:
    return new.state is WorkerState.STOPPING and old.stopping_at is None


def _left_at(old: Node, new: Node, now: dt.datetime) -> dt.datetime | None:
    """When a node stopped to take work; None: it takes work."""
    if new.state is NodeState.READY:
        return None
    return now if old.state is NodeState.READY else old.left_at
