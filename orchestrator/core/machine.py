"""The core: `handle(state, event, now) -> list[Instruction]`. Pure and deterministic.

Each kind of event has one handler. Late messages of an older attempt are fenced off here, once,
for all handlers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    CheckpointDeleted,
    Event,
    RankExited,
    RankReady,
    RankRestored,
    RanksStarted,
    SaveFailed,
    ShardWritten,
    StacksCaptured,
    WorkerEvent,
    WorkerJoined,
)
from orchestrator.core.attempts import assembly
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.messages.events import (
    CapacityChanged,
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
    FindingRaised,
    IncidentChanged,
    MaintenanceCancelled,
    MaintenanceDue,
    MaintenancePlanned,
    NodeChanged,
    QueueChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
    SchedulingPassDue,
    SparesChanged,
    StepReached,
    TimerFired,
    WorkerLost,
    WorkerRegained,
)
from orchestrator.core.messages.gang_events import (
    GangChecked,
    GangEvent,
    GangFinished,
    GangReady,
    GangRestored,
    GangSaved,
    GangStacks,
    GangStarted,
    GangStopped,
)
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
)
from orchestrator.core.requests import cluster as cluster_requests
from orchestrator.core.requests import nodes as node_requests
from orchestrator.core.requests import runs as run_requests
from orchestrator.core.supervision import (
    agent_contact,
    failures,
    findings,
    hangs,
    progress,
    startup,
)
from orchestrator.core.text import named
from orchestrator.core.timers import on_timer
from orchestrator.core.turn import Turn

Handler = Callable[[Turn, Any], Any]


def handle(state: State, event: Event, now: dt.datetime) -> list[Instruction]:
    """Take one event: change `state`, and say what to do.

    Raises:
        ConflictError, NotFoundError, InvalidError: An operator's request cannot be met; the state
            is then unchanged.
        IllegalMoveError: A defect of ours.
    """
    turn = Turn(state, event, now)
    stale = _stale(state, event)
    if stale:
        turn.record(getattr(event, "run", None), stale)
        return turn.instructions
    if isinstance(event, GangEvent):
        event = _of_those_there(turn, event)
        if not event.workers:
            return turn.instructions
    _HANDLERS[type(event)](turn, event)
    if (
        turn.schedule_wanted
        and not isinstance(event, SchedulingPassDue)
        and state.pass_wanted is None
    ):
        state.pass_wanted = event.id
    return turn.instructions


_OF_THE_LIVE_ATTEMPT = (
    RanksStarted,
    RankReady,
    RankRestored,
    RankExited,
    ShardWritten,
    SaveFailed,
    AttemptStopped,
    StacksCaptured,
    StepReached,
    FindingRaised,
    GangStarted,
    GangReady,
    GangRestored,
    GangSaved,
    GangStopped,
    GangStacks,
    GangFinished,
)


def _stale(state: State, event: Event) -> str | None:
    """Why an event does not count any more, if it does not."""
    if isinstance(event, (RunSubmitted, WorkerLost)) or not isinstance(
        event, (WorkerEvent, GangEvent, StepReached, FindingRaised, TimerFired, WorkerRegained)
    ):
        return None
    run = state.runs.get(event.run)
    last_word = isinstance(event, CheckpointChecked)  # on the last checkpoint: it comes that late
    if run is None or (run.state in TERMINAL_RUN_STATES and not last_word):
        return f"{event.kind} after the end of the run: ignored"
    if isinstance(event, _OF_THE_LIVE_ATTEMPT):
        attempt = state.attempts.get(event.run)
        if (
            attempt is None
            or event.attempt != attempt.number
            or attempt.state not in LIVE_ATTEMPT_STATES
        ):
            return f"{event.kind} of attempt {event.attempt}, now {run.attempt}: ignored"
        if isinstance(event, WorkerEvent) and event.worker not in state.places_of(event.run):
            return f"{event.kind} of {event.worker}, without a seat in the attempt: ignored"
        if isinstance(event, WorkerEvent) and event.worker not in state.workers:
            return f"{event.kind} of {event.worker}, which is gone: ignored"
    return None


def _of_those_there(turn: Turn, event: GangEvent) -> GangEvent:
    """The event without what workers say that have no seat in the attempt, or are gone."""
    state = turn.state
    places = state.places_of(event.run)
    strangers = [w for w in event.workers if w not in places or w not in state.workers]
    if not strangers or isinstance(event, GangChecked):  # whoever wrote shards may read them back
        return event
    turn.record(event.run, f"{event.kind} of {named(strangers)}, not of the attempt: ignored")
    seats = state.attempts[event.run].seats
    there = [w for w in event.workers if w in places and w in state.workers]
    return event.only({worker: seats[places[worker]].ranks for worker in there})


def _pass(turn: Turn, _event: SchedulingPassDue) -> None:
    turn.state.pass_wanted = None
    assembly.schedule(turn)


def _on_lost(turn: Turn, event: WorkerLost) -> None:
    if event.confirmed:
        failures.on_worker_gone(turn, event)
    else:
        agent_contact.on_out_of_contact(turn, event)


def _on_stopped(turn: Turn, event: AttemptStopped | GangStopped) -> None:
    workers = (event.worker,) if isinstance(event, AttemptStopped) else event.workers
    if turn.state.attempts[event.run].state is not AttemptState.STOPPING:
        who = named(workers)
        turn.record(event.run, f"{who} says its ranks are stopped, but nobody asked: ignored")
    elif (
        attempt_lifecycle.on_stopped(turn, event)
        if isinstance(event, AttemptStopped)
        else attempt_lifecycle.on_gang_stopped(turn, event)
    ):
        failures.attempt_dead(turn, event.run)


_HANDLERS: Mapping[type[Event], Handler] = {
    RunSubmitted: run_requests.on_submitted,
    RunCancelled: run_requests.on_cancelled,
    RunHeld: run_requests.on_held,
    RunReleased: run_requests.on_released,
    RestartAsked: run_requests.on_restart_asked,
    RollbackAsked: run_requests.on_rollback_asked,
    CapacityChanged: node_requests.on_capacity,
    NodeChanged: node_requests.on_node_changed,
    IncidentChanged: run_requests.on_incident_changed,
    QueueChanged: cluster_requests.on_queue_changed,
    SchedulingPassDue: _pass,
    SparesChanged: cluster_requests.on_spares_changed,
    MaintenancePlanned: cluster_requests.on_maintenance_planned,
    MaintenanceCancelled: cluster_requests.on_maintenance_cancelled,
    MaintenanceDue: cluster_requests.on_maintenance_due,
    WorkerJoined: assembly.on_joined,
    WorkerLost: _on_lost,
    WorkerRegained: agent_contact.on_regained,
    RanksStarted: startup.on_ranks_started,
    RankReady: startup.on_ready,
    RankRestored: startup.on_restored,
    RankExited: failures.on_rank_exited,
    AttemptStopped: _on_stopped,
    ShardWritten: checkpoint_lifecycle.on_shard,
    SaveFailed: checkpoint_lifecycle.on_save_failed,
    CheckpointChecked: checkpoint_lifecycle.on_checked,
    CheckpointDeleted: checkpoint_lifecycle.on_deleted,
    CheckpointPinned: checkpoint_lifecycle.on_pinned,
    CheckpointRemovalAsked: checkpoint_lifecycle.on_removal_asked,
    CheckpointVerificationAsked: checkpoint_lifecycle.on_verification_asked,
    StepReached: progress.on_step,
    FindingRaised: findings.on_finding,
    StacksCaptured: hangs.on_stacks,
    GangStarted: startup.on_ranks_started,
    GangReady: startup.on_ready,
    GangRestored: startup.on_gang_restored,
    GangSaved: checkpoint_lifecycle.on_gang_saved,
    GangChecked: checkpoint_lifecycle.on_gang_checked,
    GangStopped: _on_stopped,
    GangStacks: hangs.on_stacks,
    GangFinished: failures.on_gang_finished,
    TimerFired: on_timer,
}
