"""The core: `handle(state, event, now) -> list[Instruction]`. Pure and deterministic.

Events enter here, by one door: an agent's report of success is taken as that of a gang of one, and
what comes too late (from an ended run, an older attempt, a worker without a seat) is left out. So
each kind of event has one handler, and no handler checks again whether its event still counts.
Nothing is decided here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

from jobs.engine_events import (
    EngineEvent,
    EngineFailed,
    EngineNamed,
    EngineResumed,
    EngineSaved,
)
from jobs.events import (
    ChangeAnnounced,
    CheckpointChecked,
    CheckpointDeleted,
    CheckpointsFound,
    Event,
    RankExited,
    RankRestored,
    SaveFailed,
    SaveResumed,
    StorageTrouble,
    WorkerEvent,
    WorkerJoined,
)
from orchestrator.core.attempts import assembly
from orchestrator.core.checkpoints import deletion as checkpoint_deletion
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.checkpoints import on_disk
from orchestrator.core.checkpoints import trouble as checkpoint_trouble
from orchestrator.core.messages.batching import as_gang
from orchestrator.core.messages.check_events import (
    CheckAsked,
    CheckEnded,
    LinkListening,
    NodeChecked,
)
from orchestrator.core.messages.cluster_events import LaunchRefused, WorkerLeaving, WorkerStuck
from orchestrator.core.messages.events import (
    CapacityChanged,
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
    EventSetAside,
    FindingRaised,
    IncidentChanged,
    LeadershipBegan,
    MaintenanceCancelled,
    MaintenanceDue,
    MaintenancePlanned,
    NodeChanged,
    ProgressSeen,
    QueueChanged,
    QueueRemoved,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSetAside,
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
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.core.messages.notice_events import AskDelivered, IncidentSilenced, SummaryDue
from orchestrator.core.messages.reconciliation_events import AgentAhead, AttemptCompared
from orchestrator.core.messages.version_events import AgentRefused, ReportUnreadable
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
)
from orchestrator.core.requests import checkpoints as checkpoint_requests
from orchestrator.core.requests import cluster as cluster_requests
from orchestrator.core.requests import incidents as incident_requests
from orchestrator.core.requests import node_checks as check_requests
from orchestrator.core.requests import nodes as node_requests
from orchestrator.core.requests import runs as run_requests
from orchestrator.core.requests import summaries as summary_requests
from orchestrator.core.supervision import (
    agent_contact,
    cluster_notices,
    defects,
    engines,
    failures,
    findings,
    hangs,
    incident_updates,
    node_findings,
    progress,
    reconciliation,
    shutdown,
    startup,
    swaps,
    unreadable,
)
from orchestrator.core.text import named
from orchestrator.core.timers import on_timer
from orchestrator.core.turn import Turn

Handler = Callable[[Turn, Any], Any]


def handle(state: State, event: Event, now: dt.datetime) -> list[Instruction]:
    """Take one event: change `state` and return what is to be done, in order.

    Pure but for `state`: the same state, event and `now` give the same changes and instructions,
    so that a journal replays. An event that no longer counts changes nothing and is recorded.

    Args:
        state: Changed in place; afterwards `state.take_changes` has what must be stored.
        event: From an agent, a monitor, a timer, the cluster or a person.
        now: UTC, never earlier than in the call before.

    Raises:
        ConflictError, NotFoundError, InvalidError: A person's request cannot be met; the state
            is then unchanged.
        IllegalMoveError: A handler broke a transition table: a defect of babysit. `state` is then
            half changed and must be loaded again.
    """
    turn = Turn(state, event, now)
    current = _fence_off(turn, as_gang(event))
    if current is None:
        return turn.instructions
    _HANDLERS[type(current)](turn, current)
    incident_updates.show_changes(turn)
    # A pass may want the next one as well: what it changes (an attempt starts, so its run can be
    # preempted) comes after its plan was made.
    if turn.schedule_wanted and state.pass_wanted is None:
        state.pass_wanted = event.id
    return turn.instructions


_OF_A_RUN = (
    WorkerEvent,
    GangEvent,
    WorkerRegained,
    WorkerLeaving,
    WorkerStuck,
    ProgressSeen,
    StepReached,
    FindingRaised,
    TimerFired,
    RunSetAside,
    LaunchRefused,
    AgentRefused,
    AskDelivered,
    AgentAhead,
    AttemptCompared,
)
_OF_THE_LIVE_ATTEMPT = (
    GangEvent,
    RankRestored,
    RankExited,
    SaveFailed,
    SaveResumed,
    ChangeAnnounced,
    EngineEvent,
    ProgressSeen,
    StepReached,
    FindingRaised,
    AttemptCompared,
)
_READ_BACK = (GangChecked, CheckpointChecked, CheckpointDeleted)
"""Answers about a checkpoint, not about an attempt: any worker that wrote shards may give one, and
the one about a run's last checkpoint comes when the run has ended."""


def _fence_off(turn: Turn, event: Event) -> Event | None:
    """The event without what no longer counts; None if nothing is left of it.

    What is left out is recorded, under the kind that the sender used.
    """
    if not isinstance(event, _OF_A_RUN):
        return event
    state, kind = turn.state, turn.event.kind
    run = state.runs.get(event.run)
    if run is None or (run.state in TERMINAL_RUN_STATES and not isinstance(event, _READ_BACK)):
        turn.record(event.run, f"{kind} after the end of the run: ignored")
        return None
    if isinstance(event, _READ_BACK) or not isinstance(event, _OF_THE_LIVE_ATTEMPT):
        return event
    attempt = state.attempts.get(event.run)
    if (
        attempt is None
        or event.attempt != attempt.number
        or attempt.state not in LIVE_ATTEMPT_STATES
    ):
        turn.record(event.run, f"{kind} of attempt {event.attempt}, now {run.attempt}: ignored")
        return None
    return _of_seated_workers(turn, event)


def _of_seated_workers(turn: Turn, event: Event) -> Event | None:
    """The event without reports of workers that have no seat in the live attempt, or are gone."""
    match event:
        case GangEvent():
            run, workers = event.run, event.workers
        case WorkerEvent():
            run, workers = event.run, (event.worker,)
        case _:
            return event
    state = turn.state
    places = state.places_of(run)
    strangers = [w for w in workers if w not in places or w not in state.workers]
    if not strangers:
        return event
    turn.record(run, f"{turn.event.kind} of {named(strangers)}, not of the attempt: ignored")
    if len(strangers) == len(workers) or not isinstance(event, GangEvent):
        return None
    seats = state.attempts[run].seats
    there = [w for w in workers if w in places and w in state.workers]
    return event.only({worker: seats[places[worker]].ranks for worker in there})


def _pass(turn: Turn, _event: SchedulingPassDue) -> None:
    turn.state.pass_wanted = None
    assembly.schedule(turn)


def _lead(turn: Turn, event: LeadershipBegan) -> None:
    check_requests.on_leadership(turn, event)
    on_disk.on_leadership(turn, event)


_HANDLERS: Mapping[type[Event], Handler] = {
    LeadershipBegan: _lead,
    RunSubmitted: run_requests.on_submitted,
    RunCancelled: run_requests.on_cancelled,
    RunHeld: run_requests.on_held,
    RunReleased: run_requests.on_released,
    RestartAsked: run_requests.on_restart_asked,
    RollbackAsked: run_requests.on_rollback_asked,
    CapacityChanged: node_requests.on_capacity,
    NodeChanged: node_requests.on_node_changed,
    NodeFindingRaised: node_findings.on_finding,
    IncidentChanged: run_requests.on_incident_changed,
    IncidentSilenced: incident_requests.on_silenced,
    SummaryDue: summary_requests.on_summary_due,
    QueueChanged: cluster_requests.on_queue_changed,
    QueueRemoved: cluster_requests.on_queue_removed,
    SchedulingPassDue: _pass,
    RunSetAside: defects.on_set_aside,
    EventSetAside: defects.on_event_set_aside,
    ReportUnreadable: unreadable.on_unreadable,
    AgentRefused: unreadable.on_refused,
    AskDelivered: findings.on_ask_delivered,
    AgentAhead: reconciliation.on_agent_ahead,
    AttemptCompared: reconciliation.on_compared,
    LaunchRefused: defects.on_launch_refused,
    SparesChanged: cluster_requests.on_spares_changed,
    MaintenancePlanned: cluster_requests.on_maintenance_planned,
    MaintenanceCancelled: cluster_requests.on_maintenance_cancelled,
    MaintenanceDue: cluster_requests.on_maintenance_due,
    CheckAsked: check_requests.on_asked,
    LinkListening: check_requests.on_listening,
    NodeChecked: check_requests.on_checked,
    CheckEnded: check_requests.on_ended,
    WorkerJoined: assembly.on_joined,
    WorkerLost: agent_contact.on_lost,
    WorkerRegained: agent_contact.on_regained,
    WorkerLeaving: cluster_notices.on_leaving,
    WorkerStuck: cluster_notices.on_stuck,
    GangStarted: startup.on_started,
    GangReady: startup.on_ready,
    GangRestored: startup.on_restored,
    RankRestored: startup.on_fallback,
    GangFinished: failures.on_finished,
    RankExited: failures.on_rank_died,
    GangStopped: shutdown.on_stopped,
    GangStacks: hangs.on_stacks,
    GangSaved: swaps.on_saved,
    SaveFailed: checkpoint_lifecycle.on_save_failed,
    SaveResumed: checkpoint_trouble.on_save_resumed,
    StorageTrouble: checkpoint_trouble.on_storage_trouble,
    ChangeAnnounced: progress.on_change_announced,
    EngineNamed: engines.on_named,
    EngineFailed: engines.on_failed,
    EngineResumed: engines.on_resumed,
    EngineSaved: engines.on_saved,
    GangChecked: checkpoint_lifecycle.on_checked,
    CheckpointChecked: checkpoint_lifecycle.on_check_failed,
    CheckpointDeleted: checkpoint_deletion.on_deleted,
    CheckpointsFound: assembly.on_checkpoints_found,
    CheckpointPinned: checkpoint_requests.on_pinned,
    CheckpointRemovalAsked: checkpoint_requests.on_removal_asked,
    CheckpointVerificationAsked: checkpoint_requests.on_verification_asked,
    StepReached: progress.on_step,
    ProgressSeen: hangs.on_progress_seen,
    FindingRaised: hangs.on_finding,
    TimerFired: on_timer,
}
