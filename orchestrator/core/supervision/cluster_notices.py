"""Notices of the cluster about a worker that is not gone: it has to leave, or does not start."""

from __future__ import annotations

import dataclasses

from orchestrator.core.attempts import preemption
from orchestrator.core.messages.cluster_events import WorkerLeaving, WorkerStuck
from orchestrator.core.model.states import LIVE_ATTEMPT_STATES, RunState, WorkerState
from orchestrator.core.model.vocabulary import Remedy, Timer
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.turn import Turn

STUCK_SECONDS = 30.0
"""Seconds that a worker gets which its node cannot start now: whatever left the node before may not
be quite gone yet. Then another node is tried."""


def on_leaving(turn: Turn, event: WorkerLeaving) -> None:
    """The cluster evicts, preempts or deletes a worker: its run saves and goes on without it.

    It costs the run no budget, and the node is not blamed. A held run is left alone, and loses the
    worker when it has gone.
    """
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state in {WorkerState.STOPPING, WorkerState.ENDED}:
        return
    if turn.held(event.run):
        turn.record(event.run, f"held: {worker.id} has to leave: {event.reason}")
        return
    run, attempt = turn.run(event.run), turn.attempt(event.run)
    reason = f"{worker.node}: {event.reason}"
    turn.schedule_wanted = True
    live = attempt is not None and attempt.state in LIVE_ATTEMPT_STATES
    if not live or worker.id not in turn.state.places_of(run.id):
        worker_placement.end_worker(turn, worker, reason)
        return
    restart = preemption.asked(turn, run, reason, remedy=Remedy.MOVE_AWAY)
    restart = dataclasses.replace(restart, node=worker.node)
    if not preemption.ask(turn, run, restart, (worker.node,)):
        turn.record(run.id, f"{worker.id} has to leave, and its attempt ends already: {reason}")


def on_stuck(turn: Turn, event: WorkerStuck) -> None:
    """A launched worker does not start, or starts after all.

    Its run shows why at once. Where another node may do, one is tried after `STUCK_SECONDS`;
    otherwise the worker has as long as any other to join.
    """
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.LAUNCHING:
        return
    text = f"the agent on {worker.node} does not start: {event.reason}"
    text = text if event.reason else f"the agent on {worker.node} starts now"
    turn.record(event.run, text)
    run, attempt = turn.run(event.run), turn.attempt(event.run)
    starts = attempt is None or attempt.state not in LIVE_ATTEMPT_STATES
    if starts and run.state is not RunState.HELD:  # a hold keeps its own reason
        turn.change_run(run.id, reason=text)
    was_stuck = bool(worker.reason)
    turn.change_worker(worker.id, reason=event.reason)
    if not event.reason:
        left = worker_placement.LAUNCH_SECONDS
        turn.set_timer(worker.run, Timer.LAUNCH, left, subject=worker.id)
    elif not was_stuck and event.elsewhere:
        turn.set_timer(worker.run, Timer.LAUNCH, STUCK_SECONDS, subject=worker.id)
