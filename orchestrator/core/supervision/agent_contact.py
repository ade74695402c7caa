"""Agents out of contact. That is not failure, but it must not last for ever either."""

from __future__ import annotations

from monitors.failures import Failure, FailureClass
from orchestrator.core.attempts import assembly
from orchestrator.core.messages.events import WorkerLost, WorkerRegained
from orchestrator.core.messages.instructions import ProbeWorker
from orchestrator.core.model.entities import Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.supervision import failures, node_faults
from orchestrator.core.turn import Turn

CONTACT_SECONDS = 600.0
"""An agent out of contact for so long, which the cluster does not call dead, is given up.

Its ranks may well be training, so this is far longer than a restart of the control plane takes.
"""


def on_lost(turn: Turn, event: WorkerLost) -> None:
    """A worker is gone if the cluster or its agent confirms it; otherwise it is out of contact."""
    if event.confirmed:
        failures.on_worker_gone(turn, event)
    else:
        _out_of_contact(turn, event)


def _out_of_contact(turn: Turn, event: WorkerLost) -> None:
    """Ask the cluster, and go on; unless so many are silent that it is the network, or us."""
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.READY:
        return
    turn.change_worker(worker.id, state=WorkerState.LOST, reason=event.reason)
    turn.set_timer(worker.run, Timer.CONTACT, CONTACT_SECONDS, subject=worker.id)
    node_faults.check_breaker(turn)
    turn.emit(
        ProbeWorker, worker.run, f"{worker.id}: {event.reason}", worker=worker.id, node=worker.node
    )


def on_regained(turn: Turn, event: WorkerRegained) -> None:
    """An agent is back in contact."""
    worker = turn.state.workers.get(event.worker)
    if worker is not None and worker.state is WorkerState.LOST:
        turn.cancel_timer(worker.run, Timer.CONTACT, subject=worker.id)
        turn.change_worker(worker.id, state=WorkerState.READY, reason="back in contact")
        assembly.start_if_whole(turn, event.run)


def given_up(turn: Turn, run_id: str, worker_id: str) -> None:
    """Nobody could say for too long whether an agent lives: replace it, unless a hold says wait.

    Its attempt is stopped, and fenced should the cluster not confirm its end.
    """
    worker = turn.state.workers.get(worker_id)
    if worker is None or worker.state is not WorkerState.LOST:
        return
    node_faults.check_breaker(turn)
    if turn.held(run_id):
        turn.record(run_id, f"held: {worker_id} is still out of contact")
        turn.set_timer(run_id, Timer.CONTACT, CONTACT_SECONDS, subject=worker_id)
        return
    failure = _gone(worker)
    node_faults.note_fault(turn, worker.node, run_id, failure)
    worker_placement.end_worker(turn, worker, failure.reason)
    attempt = turn.attempt(run_id)
    if attempt is not None and any(seat.worker == worker_id for seat in attempt.seats):
        failures.lose_seat(turn, run_id, worker, failure, at=turn.now)
    turn.schedule_wanted = True


def _gone(worker: Worker) -> Failure:
    return Failure(
        failure_class=FailureClass.WORKER_LOST,
        signature=f"worker_lost {worker.node}",
        reason=f"the agent on {worker.node} has been out of contact for {CONTACT_SECONDS:.0f} s,"
        " and the cluster does not say that it is dead",
    )
