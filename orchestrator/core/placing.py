"""Placing: which runs want nodes, what is free, and getting and leaving workers."""

from __future__ import annotations

import datetime as dt

from jobs.commands import Shutdown
from orchestrator.core import ledger
from orchestrator.core.entities import Node, Run, Worker
from orchestrator.core.instructions import LaunchWorker, StopWorker
from orchestrator.core.ledger import Bucket
from orchestrator.core.scheduling import Demand, Free, Pending, Plan, Snapshot, plan
from orchestrator.core.state import State
from orchestrator.core.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    NodeState,
    RunState,
    WorkerState,
)
from orchestrator.core.turn import Turn

LAUNCH_SECONDS = 300.0
"""An agent that has not joined after this long is given up (image pulls count)."""
_COMING = frozenset({WorkerState.LAUNCHING, WorkerState.READY, WorkerState.LOST})


def wants_nodes(state: State, run: Run) -> bool:
    """Whether the run should have nodes now: no live attempt, nothing to wait for."""
    if run.state in TERMINAL_RUN_STATES or run.state is RunState.HELD or state.fleet.hold:
        return False
    attempt = state.attempts.get(run.id)
    if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES:
        return False
    return run.decision is None or (run.decision.decided and run.decision.retry_at is None)


def demand_of(state: State, run: Run) -> Demand:
    """What the run still misses."""
    own = kept(state, run)
    return Demand(
        run=run.id,
        name=run.name,
        need=run.spec.resources,
        nodes=max(0, run.spec.resources.min_nodes - len(own)),
        had_nodes=run.attempt > 0,
        priority=run.spec.priority,
        submitted_at=run.submitted_at,
        keeps=tuple(w.node for w in own),
        avoid=run.avoid,
    )


def room_of(node: Node) -> Free:
    """What an empty node has."""
    return Free(
        node=node.id, gpus=node.gpus, cpus=node.cpus, memory=node.memory or None, empty=True
    )


def free_nodes(state: State) -> list[Free]:
    """What is left on the nodes that take work."""
    free = []
    for node in state.nodes.values():
        if node.state is not NodeState.READY:
            continue
        entry = room_of(node)
        for worker in state.workers_on(node.id):
            if worker.state is not WorkerState.ENDED:
                entry = entry.take(state.runs[worker.run].spec.resources)
        free.append(entry)
    return free


def current_plan(state: State, now: dt.datetime) -> Plan:
    """One pass over every run that wants nodes."""
    demands = [demand_of(state, run) for run in state.live_runs() if wants_nodes(state, run)]
    if not any(demand.nodes for demand in demands):
        return Plan(placements={}, waits={})
    snapshot = Snapshot(
        free=free_nodes(state),
        rooms=[room_of(node) for node in state.nodes.values() if node.state is NodeState.READY],
        demands=[d for d in demands if d.nodes > 0],
    )
    return plan(snapshot, now)


def kept(state: State, run: Run) -> list[Worker]:
    """Workers the run has or is getting."""
    return [w for w in state.workers_of(run.id) if w.state in _COMING]


def leave_bad_nodes(turn: Turn, run: Run) -> None:
    """Before a new attempt.

    Give up workers on nodes that drain, and on avoided ones if there is elsewhere to go.
    """
    mine = kept(turn.state, run)
    if not any(_unusable(turn.state, run, w) or w.node in run.avoid for w in mine):
        return
    elsewhere = {
        free.node
        for free in free_nodes(turn.state)
        if free.fits(run.spec.resources) and free.node not in run.avoid
    } - {w.node for w in mine}
    for worker in mine:
        if _unusable(turn.state, run, worker) or (worker.node in run.avoid and elsewhere):
            elsewhere.discard(next(iter(sorted(elsewhere)), ""))
            end_worker(turn, worker, f"leaving {worker.node}")


def _unusable(state: State, run: Run, worker: Worker) -> bool:
    node = state.nodes.get(worker.node)
    return (
        node is None
        or node.state in {NodeState.DRAINING, NodeState.GONE}
        or (node.state is NodeState.CORDONED and worker.node in run.avoid)
    )


def launch(turn: Turn, run_id: str, node: str) -> None:
    """Ask the cluster for an agent on a node."""
    run = turn.run(run_id)
    number = run.workers_made + 1
    worker = Worker(id=f"{run.id}-w{number}", run=run.id, node=node, launched_at=turn.now)
    turn.put(worker)
    turn.change_run(run.id, workers_made=number)
    turn.set_timer(run.id, f"launch:{worker.id}", LAUNCH_SECONDS)
    turn.emit(
        LaunchWorker, run.id, f"an agent on {node} for {run.name}", worker=worker.id, node=node
    )


def placed(turn: Turn, run_id: str, nodes: tuple[str, ...]) -> None:
    """The run has its nodes; its agents are coming up."""
    run = turn.run(run_id)
    book = ledger.switch(run.ledger, Bucket.STARTING, turn.now)
    if run.state is RunState.QUEUED:
        reason = f"placed on {', '.join(nodes)}; its agents are coming up"
        turn.change_run(run_id, state=RunState.STARTING, reason=reason, pending=None, ledger=book)
    else:
        turn.change_run(run_id, pending=None, ledger=book)


def waits(turn: Turn, run_id: str, why: Pending, fitting: int) -> None:
    """The run does not fit now: say why."""
    run = turn.run(run_id)
    missing = demand_of(turn.state, run).nodes
    reason = f"waits for {missing} {'node' if missing == 1 else 'nodes'}: "
    if why is Pending.TOO_LARGE:
        reason += "more than the cluster has now"
    else:
        reason += f"{fitting} of those free fit"
    if run.pending == why.value and run.reason == reason:
        return
    book = ledger.switch(run.ledger, Bucket.QUEUED, turn.now)
    if run.state in {RunState.STARTING, RunState.RECOVERING}:
        turn.change_run(
            run_id, state=RunState.QUEUED, reason=reason, pending=why.value, ledger=book
        )
    else:
        turn.change_run(run_id, reason=reason, pending=why.value, ledger=book)


def end_worker(turn: Turn, worker: Worker, reason: str) -> None:
    """Tell an agent to leave, and have the cluster make sure."""
    if worker.state in {WorkerState.STOPPING, WorkerState.ENDED}:
        return
    if worker.state is WorkerState.READY:
        turn.tell(worker.id, Shutdown, reason, attempt=turn.run(worker.run).attempt)
    turn.cancel_timer(worker.run, f"launch:{worker.id}", f"contact:{worker.id}")
    turn.change_worker(worker.id, state=WorkerState.STOPPING, reason=reason)
    turn.emit(StopWorker, worker.run, reason, worker=worker.id, node=worker.node)
