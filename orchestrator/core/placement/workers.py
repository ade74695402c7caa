"""Launching and stopping workers, and what a plan means for a run: placed, or waiting."""

from __future__ import annotations

import dataclasses
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
from orchestrator.core.placement import bulkhead, node_checks, snapshot, wait_reasons
from orchestrator.core.policy import time_limits
from orchestrator.core.scheduling import Claim, Plan, Wait
from orchestrator.core.text import named, time_mark
from orchestrator.core.turn import Turn

LAUNCH_SECONDS = 300.0
"""Seconds until an agent that has not joined is declared lost (image pulls count)."""


def current_plan(state: State, now: dt.datetime) -> Plan:
    """One scheduling pass over all runs; an empty plan if no run needs nodes."""
    if not snapshot.anybody_wants(state, now):
        return Plan()
    return bulkhead.plan_or_name(snapshot.snapshot(state, now), now)


def leave_unusable_nodes(turn: Turn, run: Run) -> None:
    """Before a new attempt, stop workers on nodes that drain, are gone, or must not be reused."""
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
    """Launch an agent on each of these nodes."""
    for node in nodes:
        run = turn.run(run_id)
        number = run.workers_made + 1
        name = f"{run.id}-w{number}x{time_mark(turn.now)}"
        worker = Worker(id=name, run=run.id, node=node, launched_at=turn.now)
        turn.put(worker)
        turn.change_run(run.id, workers_made=number)
        turn.set_timer(run.id, Timer.LAUNCH, LAUNCH_SECONDS, subject=worker.id)
        node_checks.give_way(turn, node)
        turn.emit(
            LaunchWorker,
            run.id,
            f"an agent on {node} for {run.name}",
            worker=worker.id,
            node=node,
            checks=node_checks.preflight(turn, run, node),
        )


def placed(turn: Turn, run_id: str, nodes: tuple[str, ...]) -> None:
    """Record that the run has its nodes and its agents are starting; its max_runtime runs."""
    turn.cancel_timer(run_id, Timer.RECHECK)
    left = time_limits.runtime_left(turn.run(run_id))
    if left is not None and turn.run(run_id).due(Timer.MAX_RUNTIME) is None:
        turn.set_timer(run_id, Timer.MAX_RUNTIME, left)
        turn.change_run(run_id, runtime_left=None)
    run = turn.run(run_id)
    book = time_ledger.switch(run.ledger, Bucket.STARTING, turn.now)
    if run.state is RunState.QUEUED:
        reason = f"placed on {named(nodes)}; its agents are starting"
        turn.change_run(
            run_id, state=RunState.STARTING, reason=reason, pending=None, claim=None, ledger=book
        )
    else:
        turn.change_run(run_id, pending=None, claim=None, ledger=book)


def waits(turn: Turn, wait: Wait, claim: Claim | None) -> None:
    """Record why the run waits, and its reservation.

    The reason has no figure that changes during the wait: thousands of runs may wait, and every
    change is written to the database. `explain` computes the current figures.
    """
    run = _stop_its_time(turn, turn.run(wait.run))
    claim = _with_loss(turn, run, wait, claim)
    if run.claim != claim:
        run = turn.change_run(run.id, claim=claim)
    run = _recheck(turn, run, wait.recheck_at)
    reason = wait_reasons.waiting(wait.why, wait.missing, pack=run.spec.placement.pack)
    if run.pending is wait.why and run.reason == reason:
        return  # unchanged: write nothing
    book = time_ledger.switch(run.ledger, Bucket.QUEUED, turn.now)
    if run.state in {RunState.STARTING, RunState.RECOVERING}:
        turn.change_run(run.id, state=RunState.QUEUED, reason=reason, pending=wait.why, ledger=book)
    else:
        turn.change_run(run.id, reason=reason, pending=wait.why, ledger=book)


def _with_loss(turn: Turn, run: Run, wait: Wait, claim: Claim | None) -> Claim | None:
    """The claim, which remembers a reservation that was dropped; the drop is recorded."""
    old = run.claim
    if old is None or (claim is not None and claim.nodes):
        return claim
    new = claim or Claim(nodes=(), since=old.since, promised=old.promised)
    if old.nodes:
        why = wait_reasons.status(wait.why, pack=run.spec.placement.pack)
        turn.record(run.id, f"the reservation of {named(old.nodes)} is dropped: {why}")
        return dataclasses.replace(new, lost_at=turn.now, lost_nodes=len(old.nodes))
    return dataclasses.replace(new, lost_at=old.lost_at, lost_nodes=old.lost_nodes)


def _recheck(turn: Turn, run: Run, at: dt.datetime | None) -> Run:
    """Have a pass look again at a time; a timer that is due earlier stays."""
    due = run.due(Timer.RECHECK)
    if at is not None and (due is None or due > at):
        turn.set_timer(run.id, Timer.RECHECK, (at - turn.now).total_seconds())
    return turn.run(run.id)


def _stop_its_time(turn: Turn, run: Run) -> Run:
    """Pause max_runtime while a waiting run holds no node, for example after a preemption."""
    ends = run.due(Timer.MAX_RUNTIME)
    if ends is None or snapshot.kept(turn.state, run):
        return run
    turn.cancel_timer(run.id, Timer.MAX_RUNTIME)
    return turn.change_run(run.id, runtime_left=max(0.0, (ends - turn.now).total_seconds()))


def end_worker(turn: Turn, worker: Worker, reason: str) -> None:
    """Stop an agent by its shutdown command, and by the cluster in case that fails."""
    if worker.state in {WorkerState.STOPPING, WorkerState.ENDED}:
        return
    # The command lets the agent clean up; the cluster's stop works without the agent.
    if worker.state is WorkerState.READY:
        turn.send_command(worker.id, Shutdown, reason, attempt=turn.run(worker.run).attempt)
    turn.cancel_timer(worker.run, Timer.LAUNCH, Timer.CONTACT, subject=worker.id)
    turn.change_worker(worker.id, state=WorkerState.STOPPING, reason=reason)
    turn.emit(StopWorker, worker.run, reason, worker=worker.id, node=worker.node)


def end_workers(turn: Turn, run_id: str, nodes: Iterable[str], reason: str) -> None:
    """Stop a run's workers on these nodes."""
    left = set(nodes)
    for worker in turn.state.workers_of(run_id):
        if worker.node in left:
            end_worker(turn, worker, reason)
