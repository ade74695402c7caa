"""The core: `handle(state, event, now) -> list[Instruction]`. Pure and deterministic.

Each kind of event has one handler. Late messages of an older attempt are fenced off here, once,
for all handlers.
"""

from __future__ import annotations

import dataclasses
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
from orchestrator.core import watching
from orchestrator.core.attempts import assembly as assembling
from orchestrator.core.attempts import lifecycle as gang
from orchestrator.core.checkpoints import lifecycle as saving
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
    PassDue,
    QueueChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    RunSubmitted,
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
    RunState,
    WorkerState,
)
from orchestrator.core.placement import workers as placing
from orchestrator.core.requests import cluster as housekeeping
from orchestrator.core.requests import nodes
from orchestrator.core.requests import runs as operators
from orchestrator.core.supervision import agent_contact as contact
from orchestrator.core.supervision import failures as recovering
from orchestrator.core.supervision import startup as coming_up
from orchestrator.core.text import named
from orchestrator.core.turn import Turn

Handler = Callable[[Turn, Any], Any]


def handle(state: State, event: Event, now: dt.datetime) -> list[Instruction]:
    """Take one event: change `state`, and say what to do.

    Raises:
        RefusedError, NotFoundError, InvalidError: An operator's request cannot be met; the state
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
    if turn.schedule_wanted and not isinstance(event, PassDue) and state.pass_wanted is None:
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


def _pass(turn: Turn, _event: PassDue) -> None:
    turn.state.pass_wanted = None
    assembling.schedule(turn)


def _on_lost(turn: Turn, event: WorkerLost) -> None:
    if event.confirmed:
        recovering.on_worker_gone(turn, event)
    else:
        contact.on_out_of_contact(turn, event)


def _on_stopped(turn: Turn, event: AttemptStopped | GangStopped) -> None:
    workers = (event.worker,) if isinstance(event, AttemptStopped) else event.workers
    if turn.state.attempts[event.run].state is not AttemptState.STOPPING:
        who = named(workers)
        turn.record(event.run, f"{who} says its ranks are stopped, but nobody asked: ignored")
    elif (
        gang.on_stopped(turn, event)
        if isinstance(event, AttemptStopped)
        else gang.on_gang_stopped(turn, event)
    ):
        recovering.attempt_dead(turn, event.run)


def _on_timer(turn: Turn, event: TimerFired) -> None:
    run = turn.run(event.run)
    if run.timers.get(event.timer) != event.due:
        turn.record(run.id, f"timer {event.timer} was set anew: ignored")
        return
    turn.cancel_timer(run.id, event.timer)
    name, _, subject = event.timer.partition(":")
    _TIMERS[name](turn, run.id, subject)


def _retry(turn: Turn, run_id: str, _subject: str) -> None:
    run = turn.run(run_id)
    if run.decision is not None:
        turn.change_run(run_id, decision=dataclasses.replace(run.decision, retry_at=None))
    turn.schedule_wanted = True


def _fence(turn: Turn, run_id: str, _subject: str) -> None:
    attempt = turn.attempt(run_id)
    if attempt is not None and attempt.state is AttemptState.STOPPING:
        turn.record(run_id, f"attempt {attempt.number} could not be confirmed dead: fenced")
        for seat in attempt.seats:
            worker = turn.state.workers.get(seat.worker)
            if not seat.stopped and worker is not None:
                placing.end_worker(turn, worker, "fenced: no answer, and the cluster cannot tell")
        recovering.attempt_dead(turn, run_id, AttemptState.FENCED)


def _launch_timed_out(turn: Turn, run_id: str, worker_id: str) -> None:
    worker = turn.state.workers.get(worker_id)
    if worker is not None and worker.state is WorkerState.LAUNCHING:
        why = f"has not joined within {placing.LAUNCH_SECONDS:.0f} s"
        recovering.launch_failed(turn, turn.run(run_id), worker, why)
        if turn.run(run_id).state not in TERMINAL_RUN_STATES:
            placing.end_worker(turn, worker, why)
        turn.schedule_wanted = True


def _stacks_due(turn: Turn, run_id: str, _subject: str) -> None:
    watching.end_hang(turn, run_id)


def _stop_due(turn: Turn, run_id: str, _subject: str) -> None:
    gang.force_stop(turn, run_id)


def _silent_due(turn: Turn, run_id: str, _subject: str) -> None:
    watching.on_silent(turn, run_id)


def _max_runtime(turn: Turn, run_id: str, _subject: str) -> None:
    run = turn.run(run_id)
    if run.decision is not None and run.decision.finish is not None:
        return  # it is being ended already, for a reason of its own
    operators.end(
        turn, run, RunState.FAILED, f"max_runtime of {run.spec.max_runtime:.0f} s has passed"
    )


def _grow_due(turn: Turn, _run_id: str, _subject: str) -> None:
    turn.schedule_wanted = True


def _answer_due(turn: Turn, run_id: str, incident_id: str) -> None:
    watching.act_unanswered(turn, run_id, incident_id)


_TIMERS: Mapping[str, Callable[[Turn, str, str], None]] = {
    "retry": _retry,
    "stop": _stop_due,
    "fence": _fence,
    "stacks": _stacks_due,
    "launch": _launch_timed_out,
    "contact": contact.given_up,
    "start": recovering.start_timed_out,
    "silent": _silent_due,
    "max_runtime": _max_runtime,
    "grow": _grow_due,
    "standby": _grow_due,
    "ask": _answer_due,
}

_HANDLERS: Mapping[type[Event], Handler] = {
    RunSubmitted: operators.on_submitted,
    RunCancelled: operators.on_cancelled,
    RunHeld: operators.on_held,
    RunReleased: operators.on_released,
    RestartAsked: operators.on_restart_asked,
    RollbackAsked: operators.on_rollback_asked,
    CapacityChanged: nodes.on_capacity,
    NodeChanged: nodes.on_node_changed,
    IncidentChanged: operators.on_incident_changed,
    QueueChanged: housekeeping.on_queue_changed,
    PassDue: _pass,
    SparesChanged: housekeeping.on_spares_changed,
    MaintenancePlanned: housekeeping.on_maintenance_planned,
    MaintenanceCancelled: housekeeping.on_maintenance_cancelled,
    MaintenanceDue: housekeeping.on_maintenance_due,
    WorkerJoined: assembling.on_joined,
    WorkerLost: _on_lost,
    WorkerRegained: contact.on_regained,
    RanksStarted: coming_up.on_ranks_started,
    RankReady: coming_up.on_ready,
    RankRestored: coming_up.on_restored,
    RankExited: recovering.on_rank_exited,
    AttemptStopped: _on_stopped,
    ShardWritten: saving.on_shard,
    SaveFailed: saving.on_save_failed,
    CheckpointChecked: saving.on_checked,
    CheckpointDeleted: saving.on_deleted,
    CheckpointPinned: saving.on_pinned,
    CheckpointRemovalAsked: saving.on_removal_asked,
    CheckpointVerificationAsked: saving.on_verification_asked,
    StepReached: watching.on_step,
    FindingRaised: watching.on_finding,
    StacksCaptured: watching.on_stacks,
    GangStarted: coming_up.on_ranks_started,
    GangReady: coming_up.on_ready,
    GangRestored: coming_up.on_gang_restored,
    GangSaved: saving.on_gang_saved,
    GangChecked: saving.on_gang_checked,
    GangStopped: _on_stopped,
    GangStacks: watching.on_stacks,
    GangFinished: recovering.on_gang_finished,
    TimerFired: _on_timer,
}
