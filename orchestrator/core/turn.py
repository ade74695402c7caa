"""One turn of the core: an event, the moment, and what it leads to."""

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
    RunState,
    WorkerState,
    check_move,
)
from orchestrator.core.model.vocabulary import IncidentKind, Timer
from orchestrator.core.policy import usage_history

_NOT_IN_THE_QUEUE = frozenset({RunState.HELD, *TERMINAL_RUN_STATES})
_SEEN_THROUGH_A_HOLD = frozenset({None, RunState.HELD, *TERMINAL_RUN_STATES})


class Turn:
    """The only way handlers read and change the state. Collects instructions."""

    def __init__(self, state: State, event: Event, now: dt.datetime) -> None:
        self.state, self.event, self.now = state, event, now
        self.instructions: list[Instruction] = []
        self.schedule_wanted = False
        self._incidents = 0

    # reading

    def run(self, run: str) -> Run:
        """The run as it is now."""
        return self.state.runs[run]

    def attempt(self, run: str) -> Attempt | None:
        """The run's newest attempt as it is now."""
        return self.state.attempts.get(run)

    def held(self, run: str) -> bool:
        """Whether a hold stops automatic action for a run: its own, or that of everything."""
        return self.state.fleet.hold is not None or self.run(run).state is RunState.HELD

    # changing: one guarded method for each kind of thing that has states

    def put(self, entity: Entity) -> None:
        """Store something that is new."""
        self.state.put(entity)

    def change_run(self, run: str, **changes: Any) -> Run:
        """Change fields; a change of state must be legal.

        Under a hold, the state underneath changes. A run that is held or over is not in the queue:
        nodes are kept for it no longer.
        """
        old = self.state.runs[run]
        if old.state is RunState.HELD and changes.get("state") not in _SEEN_THROUGH_A_HOLD:
            changes["held_from"] = changes.pop("state")
            changes.pop("reason", None)
        if changes.get("state") in _NOT_IN_THE_QUEUE:
            changes |= {"claim": None, "pending": None}
        new = dataclasses.replace(old, **changes)
        check_move(RUN_MOVES, old.state, new.state, f"run {run}", f"{old.reason} -> {new.reason}")
        self.state.put(new)
        return new

    def release_run(self, run: str, state: RunState, reason: str) -> Run:
        """End a hold: the state underneath comes up."""
        old = self.state.runs[run]
        check_move(RUN_MOVES, old.state, state, f"run {run}", old.reason)
        new = dataclasses.replace(old, state=state, held_from=None, reason=reason)
        self.state.put(new)
        return new

    def change_attempt(self, run: str, **changes: Any) -> Attempt:
        """Change the run's newest attempt."""
        old = self.state.attempts[run]
        new = dataclasses.replace(old, **changes)
        check_move(ATTEMPT_MOVES, old.state, new.state, f"attempt {old.id}", self.run(run).reason)
        self.state.put(new)
        return new

    def change_worker(self, worker: str, **changes: Any) -> Worker:
        """Change a worker."""
        old = self.state.workers[worker]
        new = dataclasses.replace(old, **changes)
        check_move(WORKER_MOVES, old.state, new.state, f"worker {worker}", old.reason)
        self.state.put(new)
        if new.state is WorkerState.ENDED and old.state is not new.state:
            run = self.state.runs[new.run]
            self.state.put(usage_history.booked(self.state.fleet, run, new, self.now))
        return new

    def change_node(self, node: str, **changes: Any) -> Node:
        """Change a node."""
        old = self.state.nodes[node]
        new = dataclasses.replace(old, **changes)
        check_move(NODE_MOVES, old.state, new.state, f"node {node}", old.reason)
        self.state.put(new)
        return new

    def change_checkpoint(self, checkpoint: str, **changes: Any) -> Checkpoint:
        """Change a checkpoint."""
        old = self.state.checkpoints[checkpoint]
        new = dataclasses.replace(old, **changes)
        check_move(TRUST_MOVES, old.trust, new.trust, f"checkpoint {checkpoint}", old.reason)
        self.state.put(new)
        return new

    def change_incident(self, incident: str, **changes: Any) -> Incident:
        """Change an incident."""
        old = self.state.incidents[incident]
        new = dataclasses.replace(old, **changes)
        check_move(INCIDENT_MOVES, old.state, new.state, f"incident {incident}", old.reason)
        self.state.put(new)
        return new

    # incidents

    def open_incident(
        self, run: Run, *, kind: IncidentKind, severity: Severity, reason: str, **fields: Any
    ) -> Incident:
        """Open an incident; its id is the event's."""
        self._incidents += 1
        suffix = "" if self._incidents == 1 else f"-{self._incidents}"
        incident = Incident(
            id=f"{self.event.id}{suffix}",
            run=run.id,
            attempt=run.attempt,
            kind=kind,
            severity=severity,
            reason=reason,
            opened_at=self.now,
            **fields,
        )
        self.state.put(incident)
        return incident

    def resolve_incident(self, incident: str | None, how: str) -> None:
        """Resolve it, if it is known and not resolved yet."""
        known = self.state.incidents.get(incident or "")
        if known is not None and known.state is not IncidentState.RESOLVED:
            evidence = {**known.evidence, "resolved": how}
            self.change_incident(
                known.id, state=IncidentState.RESOLVED, resolved_at=self.now, evidence=evidence
            )

    # timers

    def set_timer(self, run: str, timer: Timer, seconds: float, subject: str = "") -> None:
        """Have TimerFired follow after `seconds`, unless the timer is cancelled or set again.

        Each subject (a worker, an incident) has a timer of its own.
        """
        due = self.now + dt.timedelta(seconds=seconds)
        timers = self.run(run).timers
        self.change_run(run, timers={**timers, timer: {**timers.get(timer, {}), subject: due}})
        self.state.expect(Deadline(due, run, timer, subject))

    def cancel_timer(self, run: str, *timers: Timer, subject: str = "") -> None:
        """Forget timers of one subject; one that is not set, or whose run is over, is no error."""
        known = self.state.runs.get(run)
        if known is None or all(known.due(timer, subject) is None for timer in timers):
            return
        left = dict(known.timers)
        for timer in timers:
            others = {key: due for key, due in left.pop(timer, {}).items() if key != subject}
            if others:
                left[timer] = others
        self.change_run(run, timers=left)

    # instructions

    @property
    def next_id(self) -> str:
        """Id of the next instruction of this turn."""
        return f"{self.event.id}.{len(self.instructions) + 1}"

    def emit(self, kind: type[Instruction], run: str | None, reason: str, **fields: Any) -> None:
        """Add an instruction."""
        self.instructions.append(
            kind(id=self.next_id, cause=self.event.id, run=run, reason=reason, **fields)
        )

    def record(self, run: str | None, reason: str) -> None:
        """Write a decision into the journal; nothing to carry out."""
        self.emit(Record, run, reason)

    def send_command(
        self, worker: str, command: type[Command], why: str, *, attempt: int, **fields: Any
    ) -> None:
        """Send a command to an agent."""
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
        """Send a command to many agents of a run; `parts` has each one's ranks, in their order."""
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
    ) -> None:
        """Deliver a notice to people.

        Args:
            run: The run that the notice is about; None: the whole cluster.
            severity: How urgent the notice is.
            text: One sentence, with the name of the run.
            incident: Id of the incident behind the notice, if there is one.
            kind: What the notice is about, in one word; of use only without an incident, whose
                own kind counts otherwise.
        """
        found = self.state.incidents.get(incident or "")
        about = self.state.runs.get(run or "")
        self.emit(
            Notify,
            run,
            text,
            severity=severity,
            text=text,
            incident=incident,
            incident_kind=str(found.kind) if found else kind or "notice",
            attempt=about.attempt if about else None,
            channel=about.spec.notify.slack if about else None,
        )
