"""Placing: which runs want nodes, what all have, and getting and leaving workers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Iterable

from jobs.commands import Shutdown
from orchestrator.core.messages.instructions import LaunchWorker, StopWorker
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Run, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState, RunState, WorkerState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot
from orchestrator.core.policy import time_limits
from orchestrator.core.scheduling import Claim, Pending, Plan, Wait, plan
from orchestrator.core.text import named
from orchestrator.core.turn import Turn

LAUNCH_SECONDS = 300.0
"""An agent that has not joined after this long is given up (image pulls count)."""
_WHY = {
    Pending.NO_CAPACITY: "not enough are free that fit",
    Pending.TOPOLOGY: "enough are free, but not within one {pack}",
    Pending.QUOTA: "its queue's quota is used up",
    Pending.RESERVED: "those that are free are kept for a run ahead of it",
    Pending.SPARES: "those that are free are spares for recoveries",
    Pending.MAINTENANCE: "those that are free are maintained before it would end",
    Pending.PREEMPTING: "others save and leave for it",
    Pending.BEHIND: "a run of its queue is ahead of it",
    Pending.TOO_LARGE: "more than the cluster has now",
}


def current_plan(state: State, now: dt.datetime) -> Plan:
    """One pass over every run that wants nodes; none where nobody does."""
    if not snapshot.anybody_wants(state, now):
        return Plan()
    return plan(snapshot.snapshot(state, now), now)


def leave_unusable_nodes(turn: Turn, run: Run) -> None:
    """Before a new attempt: give up workers on nodes that drain, or that nobody may go back to."""
    avoid = frozenset(run.avoid)
    for worker in snapshot.kept(turn.state, run):
        if _unusable(turn.state, worker, avoid):
            end_worker(turn, worker, f"leaving {worker.node}")


def _unusable(state: State, worker: Worker, avoid: Container[str]) -> bool:
    node = state.nodes.get(worker.node)
    return (
        node is None
        or node.state in {NodeState.DRAINING, NodeState.GONE}
        or (node.state is NodeState.CORDONED and worker.node in avoid)
    )


def launch(turn: Turn, run_id: str, nodes: Iterable[str]) -> None:
    """Ask the cluster for an agent on each of these nodes."""
    for node in nodes:
        run = turn.run(run_id)
        number = run.workers_made + 1
        worker = Worker(id=f"{run.id}-w{number}", run=run.id, node=node, launched_at=turn.now)
        turn.put(worker)
        turn.change_run(run.id, workers_made=number)
        turn.set_timer(run.id, Timer.LAUNCH, LAUNCH_SECONDS, subject=worker.id)
        turn.emit(
            LaunchWorker, run.id, f"an agent on {node} for {run.name}", worker=worker.id, node=node
        )


def placed(turn: Turn, run_id: str, nodes: tuple[str, ...]) -> None:
    """The run has its nodes; its agents are coming up. Its time runs."""
    left = time_limits.runtime_left(turn.run(run_id))
    if left is not None and turn.run(run_id).due(Timer.MAX_RUNTIME) is None:
        turn.set_timer(run_id, Timer.MAX_RUNTIME, left)
        turn.change_run(run_id, runtime_left=None)
    run = turn.run(run_id)
    book = time_ledger.switch(run.ledger, Bucket.STARTING, turn.now)
    if run.state is RunState.QUEUED:
        reason = f"placed on {named(nodes)}; its agents are coming up"
        turn.change_run(
            run_id, state=RunState.STARTING, reason=reason, pending=None, claim=None, ledger=book
        )
    else:
        turn.change_run(run_id, pending=None, claim=None, ledger=book)


def waits(turn: Turn, wait: Wait, claim: Claim | None) -> None:
    """The run does not fit now: say why.

    The reason bears no figure that changes while it waits: thousands may wait, and each change is
    written. `explain` has the figures of the moment.
    """
    run = _stop_its_time(turn, turn.run(wait.run))
    if run.claim != claim:
        run = turn.change_run(run.id, claim=claim)
    why = _WHY[wait.why].format(pack=run.spec.placement.pack)
    reason = f"waits for {wait.missing} {'node' if wait.missing == 1 else 'nodes'}: {why}"
    if run.pending == wait.why.value and run.reason == reason:
        return
    book = time_ledger.switch(run.ledger, Bucket.QUEUED, turn.now)
    if run.state in {RunState.STARTING, RunState.RECOVERING}:
        turn.change_run(
            run.id, state=RunState.QUEUED, reason=reason, pending=wait.why.value, ledger=book
        )
    else:
        turn.change_run(run.id, reason=reason, pending=wait.why.value, ledger=book)


def _stop_its_time(turn: Turn, run: Run) -> Run:
    """A run that waits and has no node, as when it left them for another, uses none of its time."""
    ends = run.due(Timer.MAX_RUNTIME)
    if ends is None or snapshot.kept(turn.state, run):
        return run
    turn.cancel_timer(run.id, Timer.MAX_RUNTIME)
    return turn.change_run(run.id, runtime_left=max(0.0, (ends - turn.now).total_seconds()))


def end_worker(turn: Turn, worker: Worker, reason: str) -> None:
    """Tell an agent to leave, and have the cluster make sure."""
    if worker.state in {WorkerState.STOPPING, WorkerState.ENDED}:
        return
    if worker.state is WorkerState.READY:
        turn.send_command(worker.id, Shutdown, reason, attempt=turn.run(worker.run).attempt)
    turn.cancel_timer(worker.run, Timer.LAUNCH, Timer.CONTACT, subject=worker.id)
    turn.change_worker(worker.id, state=WorkerState.STOPPING, reason=reason)
    turn.emit(StopWorker, worker.run, reason, worker=worker.id, node=worker.node)


def end_workers(turn: Turn, run_id: str, nodes: Iterable[str], reason: str) -> None:
    """Have a run leave nodes."""
    left = set(nodes)
    for worker in turn.state.workers_of(run_id):
        if worker.node in left:
            end_worker(turn, worker, reason)
