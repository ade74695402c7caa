"""Agents that are gone for certain, or never started: with a seat, their attempt fails."""

from __future__ import annotations

import datetime as dt

from monitors.failures import Evidence, Failure, FailureClass
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import memory_tier, on_disk, trouble
from orchestrator.core.messages.events import WorkerLost
from orchestrator.core.model.decisions import Vacate
from orchestrator.core.model.entities import RankFailure, Run, Worker
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    RUNNABLE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    NodeState,
    RunState,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import standby_nodes
from orchestrator.core.policy import recovery
from orchestrator.core.supervision import failures, node_faults
from orchestrator.core.turn import Turn


def on_worker_gone(turn: Turn, event: WorkerLost) -> None:
    """End a worker of which, as the cluster confirms, no process is left.

    A worker of the live attempt takes the attempt with it; any other counts as a failed launch,
    unless it had been ordered to stop.
    """
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is WorkerState.ENDED:
        return
    expected = worker.state is WorkerState.STOPPING or _had_to_leave(turn, worker)
    gone = Failure(
        failure_class=FailureClass.WORKER_LOST,
        source=Evidence.CLUSTER,
        signature=f"worker_lost {worker.node}",
        reason=f"the agent on {worker.node} is gone: {event.reason}",
    )
    turn.cancel_timer(worker.run, Timer.LAUNCH, Timer.CONTACT, subject=worker.id)
    turn.change_worker(worker.id, state=WorkerState.ENDED, reason=event.reason)
    memory_tier.drop_with(turn, worker.run, worker.id)
    trouble.ends_with(turn, worker.run, worker.id)
    turn.schedule_wanted = True
    run = turn.run(worker.run)
    if run.state in TERMINAL_RUN_STATES:
        return
    attempt = turn.attempt(run.id)
    seated = worker.id in turn.state.places_of(run.id)
    if attempt is None or not seated or attempt.state not in LIVE_ATTEMPT_STATES:
        if not expected:
            launch_failed(turn, run, worker, event.reason)
        return
    if not expected:
        node_faults.note_fault(turn, worker.node, run.id, gone)
    on_disk.reports_lost(turn, run.id)  # what it had not reported yet is lost with it
    lose_seat(turn, run.id, worker, gone, at=event.at)
    if attempt_lifecycle.empty_seats(turn, run.id, (worker.id,)):
        failures.attempt_dead(turn, run.id)


def _had_to_leave(turn: Turn, worker: Worker) -> bool:
    """True if the run is about to leave the worker's node, and the worker has gone early."""
    decision, node = turn.run(worker.run).decision, turn.state.nodes.get(worker.node)
    drained = node is not None and node.state is NodeState.DRAINING
    return isinstance(decision, Vacate) and (drained or worker.node in decision.nodes)


def lose_seat(turn: Turn, run_id: str, worker: Worker, gone: Failure, *, at: dt.datetime) -> None:
    """Fail the live attempt, a worker of which is lost.

    An attempt that is being stopped keeps its decision; but the loss is one of its failures: ranks
    that complain of a closed connection may be heard of before the agent whose loss closed it.
    """
    attempt = turn.state.attempts[run_id]
    place = turn.state.places_of(run_id).get(worker.id)
    stopping = attempt.state not in RUNNABLE_ATTEMPT_STATES
    if place is None or attempt.state not in LIVE_ATTEMPT_STATES:
        return
    if stopping and worker.state is WorkerState.STOPPING:  # as it was ordered to
        return
    if ranks := attempt.seats[place].ranks:  # none: it may run the attempt, and nobody knows it
        death = RankFailure(rank=min(ranks), node=worker.node, at=at, failure=gone)
        turn.change_attempt(run_id, failures=(*attempt.failures, death))
    if not stopping:
        failures.fail_attempt(turn, run_id, gone, failed_at=at, rank=None, node=worker.node)


def launch_failed(turn: Turn, run: Run, worker: Worker, reason: str) -> None:
    """Charge an agent without a seat that never started, or died before it got one.

    The run avoids the node, and stops after :data:`recovery.LAUNCH_TRIES` of them without progress.
    An agent beside a live attempt (a standby, or growth) costs the run nothing. Neither does one
    that a restored backup tells to launch once more: nobody knows what became of it.
    """
    node = worker.node
    restored = turn.state.fleet.restored_at
    if restored is not None and worker.launched_at < restored:
        turn.record(run.id, f"{worker.id} was launched before a backup was restored: not charged")
        return
    what = "did not start" if worker.joined_at is None else "died before it was needed"
    failure = Failure(
        failure_class=FailureClass.WORKER_LOST,
        source=Evidence.CLUSTER,
        signature=f"launch {node}",
        reason=f"the agent on {node} {what}: {reason}",
    )
    turn.change_run(run.id, avoid=recovery.avoiding(run, node))
    node_faults.note_fault(turn, node, run.id, failure)
    attempt = turn.attempt(run.id)
    if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES:
        standby_nodes.lost(turn, worker, failure)
        return
    budgets, count = recovery.charge_launch(run, failure.reason)
    turn.change_run(run.id, budgets=budgets)
    if count > recovery.LAUNCH_TRIES:
        attempt_lifecycle.finish_run(
            turn, run.id, RunState.FAILED, f"{failure.reason} ({count} times)"
        )
