"""Runs that are asked to save and leave: for others, for a drain, or to grow. It is free."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from monitors.failures import Cause, FailureClass
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.model.decisions import Restart, Vacate
from orchestrator.core.model.entities import Run
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    RUNNABLE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    RunState,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.placement import snapshot
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from orchestrator.core.scheduling import Eviction
from orchestrator.core.text import named
from orchestrator.core.turn import Turn

_WHY = {
    "priority": "which has a higher priority",
    "reclaim": "whose queue takes back what was borrowed",
    "order": "which is ahead in the queue",
}


def asked(turn: Turn, run: Run, reason: str, *, remedy: Remedy = Remedy.AS_ASKED) -> Restart:
    """A restart that nothing failed for."""
    return Restart(
        attempt=run.attempt + 1,
        cause=Cause.OPERATOR,
        failure_class=FailureClass.UNKNOWN,
        reason=reason,
        remedy=remedy,
        failed_at=turn.now,
        detected_at=turn.now,
        best_step=run.best_step,
    )


def ask(turn: Turn, run: Run, restart: Restart, give_back: tuple[str, ...] = ()) -> bool:
    """Have the live attempt save and end; whether there is one that can be asked now."""
    attempt = turn.attempt(run.id)
    if (
        run.state in TERMINAL_RUN_STATES
        or turn.held(run.id)  # its release looks again
        or run.decision is not None
        or attempt is None
        or attempt.state not in RUNNABLE_ATTEMPT_STATES
    ):
        return False
    restart = dataclasses.replace(
        restart, cause=Cause.PREEMPTION, failure_class=FailureClass.PREEMPTION
    )
    turn.change_run(
        run.id,
        decision=Vacate(restart=restart, nodes=give_back),
        state=RunState.RECOVERING,
        reason=restart.reason,
    )
    attempt_lifecycle.stop_attempt(turn, run.id, restart.reason, grace=GRACE_SECONDS)
    return True


def have_no_seat(turn: Turn, run_id: str, nodes: Container[str]) -> bool:
    """Whether a run has a live attempt, and none of it is on these nodes: standbys, or growth."""
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in LIVE_ATTEMPT_STATES:
        return False
    seated = turn.state.places_of(run_id)
    workers = turn.state.workers_of(run_id)
    return not any(worker.id in seated for worker in workers if worker.node in nodes)


def evict(turn: Turn, eviction: Eviction) -> None:
    """Nodes of one run for another, as the scheduler has it.

    A run that trains saves first. One that only holds nodes while it waits, or whose agents are
    coming up, gives them back at once; and so does any that trains on others.
    """
    run, by = turn.run(eviction.run), turn.run(eviction.by)
    if have_no_seat(turn, run.id, eviction.nodes):
        reason = f"{named(eviction.nodes)} left to {by.name}, {_WHY[eviction.why]}"
        worker_placement.end_workers(turn, run.id, eviction.nodes, reason)
        return
    whole = len(eviction.nodes) == len(snapshot.kept(turn.state, run))
    what = "leaves its nodes" if whole else f"leaves {len(eviction.nodes)} nodes and goes on"
    reason = f"{what} for {by.name}, {_WHY[eviction.why]}"
    restart = asked(turn, run, reason, remedy=Remedy.PREEMPTED if whole else Remedy.SHRINK)
    turn.record(
        run.id, f"{reason}; it loses {eviction.lost_gpu_seconds:.0f} GPU s if it cannot save"
    )
    if not ask(turn, run, restart, eviction.nodes):
        worker_placement.end_workers(turn, run.id, eviction.nodes, reason)


def grow(turn: Turn, run_id: str) -> None:
    """More agents than seats, beyond the standbys: an elastic run takes them in, at one restart."""
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    workers = turn.state.workers_of(run_id)
    if attempt is None or any(worker.state is WorkerState.LAUNCHING for worker in workers):
        return
    ready = sum(worker.state is WorkerState.READY for worker in workers)
    seats, most = len(attempt.seats), run.spec.resources.max_nodes
    target = min(most, ready - run.spec.placement.standbys)
    if target > seats and snapshot.may_grow(attempt, turn.now):
        reason = f"grows from {seats} to {target} nodes"
        ask(turn, run, asked(turn, run, reason, remedy=Remedy.GROW))
