"""Agents out of contact: no failure in itself, but not for ever either.

A network that is down hides a healthy run as well as a dead one, and a run that trains must not be
stopped because babysit cannot see it (rule 1). So the cluster is asked; only where it cannot tell,
and only after `CONTACT_SECONDS`, is the agent replaced. An agent that a new leader has never heard
of is not replaced at all, until the cluster or a person says that it is dead.
"""

from __future__ import annotations

from monitors.failures import Evidence, Failure, FailureClass
from monitors.types import Severity
from orchestrator.core.attempts import assembly
from orchestrator.core.messages.events import WorkerLost, WorkerRegained
from orchestrator.core.messages.instructions import ProbeWorker
from orchestrator.core.model.entities import Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.supervision import lost_agents, node_faults
from orchestrator.core.turn import Turn

CONTACT_SECONDS = 600.0
"""Seconds out of contact after which an agent is replaced, unless the cluster calls it dead before.

Its ranks may well be training, so this is far longer than a restart of the control plane takes.
"""


def on_lost(turn: Turn, event: WorkerLost) -> None:
    """A worker is gone if the cluster or its agent confirms it; otherwise it is out of contact."""
    if event.confirmed:
        lost_agents.on_worker_gone(turn, event)
    else:
        _out_of_contact(turn, event)


def _out_of_contact(turn: Turn, event: WorkerLost) -> None:
    """Mark a worker lost, ask the cluster whether its agent is alive, and let the run go on.

    Too many silent nodes at once trip the breaker: then it is the network, or babysit.
    """
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
    """An agent is back in contact; its gang may be whole by that."""
    worker = turn.state.workers.get(event.worker)
    if worker is not None and worker.state is WorkerState.LOST:
        turn.cancel_timer(worker.run, Timer.CONTACT, subject=worker.id)
        turn.change_worker(worker.id, state=WorkerState.READY, reason="back in contact")
        assembly.start_if_whole(turn, event.run)


def given_up(turn: Turn, run_id: str, worker_id: str) -> None:
    """Replace an agent that was out of contact for `CONTACT_SECONDS`; under a hold, wait on.

    Its attempt is stopped, and fenced if the cluster cannot confirm its end either.
    """
    worker = turn.state.workers.get(worker_id)
    if worker is None or worker.state is not WorkerState.LOST:
        return
    if getattr(turn.event, "unheard", False):
        _wait_on(turn, worker)
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
        lost_agents.lose_seat(turn, run_id, worker, failure, at=turn.now)
    turn.schedule_wanted = True


def _wait_on(turn: Turn, worker: Worker) -> None:
    """Keep an agent that never found this server since it leads, and page.

    Its ranks train on for all that is known, and what hides it hides every agent: they look for
    another server, or the network between is down. The cluster has not called it dead.
    """
    run = turn.run(worker.run)
    text = (
        f"{run.name}: the agent on {worker.node} has not been heard of since this server leads;"
        " its ranks may train on, so that nothing is stopped. Look whether agents reach"
        f" BABYSIT_AGENT_URL; if the node is dead, `babysit restart {run.name}`"
    )
    turn.set_timer(run.id, Timer.CONTACT, CONTACT_SECONDS, subject=worker.id)
    turn.notify(run.id, Severity.CRITICAL, text, kind="agent_not_heard")


def _gone(worker: Worker) -> Failure:
    return Failure(
        failure_class=FailureClass.WORKER_LOST,
        source=Evidence.BABYSIT,
        signature=f"worker_lost {worker.node}",
        reason=f"the agent on {worker.node} has been out of contact for {CONTACT_SECONDS:.0f} s,"
        " and the cluster does not say that it is dead",
    )
