"""The life of an attempt: started, stopped, confirmed dead; and the end of its run.

A run never has two live attempts. `start_attempt` is reached only when the one before has ended or
is fenced, its number is the fencing token of all that it writes, and an attempt that is stopped
counts as dead only when each of its seats is confirmed empty, by the agent or by the cluster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jobs.commands import RestoreCandidate, StartAttempt, StopAttempt
from monitors.types import Severity
from orchestrator.core.checkpoints import memory_tier, rollback
from orchestrator.core.messages.gang_events import GangStopped
from orchestrator.core.messages.instructions import StopWorker
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Rollback, RollbackTo
from orchestrator.core.model.entities import Attempt, Checkpoint, Queue, Run, Seat, Worker
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    RUNNABLE_ATTEMPT_STATES,
    AttemptState,
    RunState,
    WorkerState,
)
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy import checkpoint_choice, elasticity, usage_history
from orchestrator.core.text import named
from orchestrator.core.turn import Turn

STOP_SECONDS = 30.0
"""Seconds, beside the grace: an agent that has not answered StopAttempt by then is ended through
the cluster."""
START_SECONDS = 300.0
"""Seconds in which all agents must have started their ranks; else the attempt fails (row 24)."""
SILENT_SECONDS = 60.0
"""Seconds without `babysit.init()` after which a script counts as one that does not report."""
FENCE_SECONDS = 120.0
"""Seconds, beside the grace, after which an attempt that nobody could confirm dead is fenced."""

_JOINED = frozenset({WorkerState.READY, WorkerState.LOST})


def start_attempt(turn: Turn, run: Run, seats: tuple[Seat, ...]) -> None:
    """Start the next attempt from the newest checkpoint that may be trusted for the cause at hand.

    There is one way to get here: `assembly.start_if_whole`, when all workers of the gang are ready.
    That is asked in a scheduling pass, when a worker joins, and when one is back in contact.

    Where the run had checkpoints and none can be trusted any more, it is held instead: to begin
    again is for a person to decide (rule 1), unless a person already did.
    """
    number = run.attempt + 1
    world_size = sum(len(seat.ranks) for seat in seats)
    candidates = _candidates(turn, run, seats, world_size)
    if not candidates and run.decision is not None:  # people let it begin again
        rollback.rewind(turn, run.id, run.decision)
    known = turn.state.checkpoints_of(run.id)
    if not candidates and checkpoint_choice.has_lost_its_past(run, turn.attempt(run.id), known):
        hold(turn, run.id, "none of its checkpoints can be trusted any more")
        return
    decision = run.decision
    restart = (
        dataclasses.replace(
            decision.restart, attempt=number, placed_at=turn.now, best_step=run.best_step
        )
        if decision
        else None
    )
    grow_after = elasticity.grow_after(turn.attempt(run.id), restart, turn.now)
    turn.put(
        Attempt(
            run=run.id,
            number=number,
            seats=seats,
            world_size=world_size,
            restart=restart,
            candidates=tuple(c.id for c in candidates),
            started_at=turn.now,
            grow_after=grow_after,
        )
    )
    source = _source(run, number, candidates)
    reason = f"attempt {number} starts from {source} on {named([seat.node for seat in seats])}"
    state = RunState.STARTING if number == 1 else RunState.RECOVERING
    turn.change_run(
        run.id,
        state=state,
        attempt=number,
        decision=None,
        pending=None,
        reason=reason,
        started_at=run.started_at or turn.now,
        ledger=time_ledger.switch(run.ledger, Bucket.STARTING, turn.now),
    )
    turn.cancel_timer(run.id, Timer.STANDBY)
    turn.set_timer(run.id, Timer.START, START_SECONDS)
    if len(seats) < run.spec.resources.max_nodes:
        turn.set_timer(run.id, Timer.GROW, grow_after)
    elif run.spec.placement.standbys:
        turn.set_timer(run.id, Timer.GROW, snapshot.STANDBY_SECONDS)
    master = turn.state.workers[seats[0].worker]
    turn.broadcast(
        run.id,
        {seat.worker: seat.ranks for seat in seats},
        StartAttempt,
        reason,
        attempt=number,
        ranks=(),
        world_size=world_size,
        node_rank=0,
        nodes=len(seats),
        master_address=master.address,
        master_port=master.port,
        restore=tuple(_offer(candidate) for candidate in candidates),
        skip_batches=run.skip_batches,
    )


CANDIDATES = 8
"""Checkpoints offered to an attempt: it falls back along the list by itself."""


def _offer(checkpoint: Checkpoint) -> RestoreCandidate:
    return RestoreCandidate(
        id=checkpoint.id,
        step=checkpoint.step,
        tier=checkpoint.tier,
        path=checkpoint.path,
        world_size=checkpoint.world_size,
        attempt=checkpoint.attempt,
    )


def _source(run: Run, number: int, candidates: list[Checkpoint]) -> str:
    """The start of an attempt in words: a script may find its newest checkpoint itself."""
    if candidates:
        return f"step {candidates[0].step} ({candidates[0].tier})"
    resume = run.spec.resume
    finds = number > 1 and resume is not None and not resume.by_step
    return "where its script resumes" if finds else "the beginning"


def _candidates(turn: Turn, run: Run, seats: tuple[Seat, ...], world_size: int) -> list[Checkpoint]:
    decision = run.decision
    homes = {rank: seat.worker for seat in seats for rank in seat.ranks}
    return checkpoint_choice.trusted(
        turn.state.checkpoints_of(run.id),
        homes=homes,
        world_size=world_size,
        before_step=decision.onset_step if isinstance(decision, Rollback) else None,
        to_step=decision.step if isinstance(decision, RollbackTo) else None,
        forced=isinstance(decision, RollbackTo) and decision.force,
    )[:CANDIDATES]


def stop_attempt(turn: Turn, run_id: str, reason: str, *, grace: float = 0.0) -> None:
    """Stop what is left of the live attempt; nothing happens without one that runs.

    There are four ways to get here: a failure (`failures.fail_attempt`), a finding that is acted on
    (directly, or with the stacks of a hang), a preemption or drain (`preemption.ask`), and the end
    or restart that a person or `max_runtime` asks for (`requests.runs`).

    The attempt is dead, and `failures.attempt_dead` reached, when every seat is confirmed empty: by
    the agent's answer, by the cluster, or (fenced) after `FENCE_SECONDS` without either.

    Args:
        turn: The turn.
        run_id: The run.
        reason: Why, in a sentence; the agents log it.
        grace: Seconds that ranks get to save and leave by themselves; 0 kills them at once.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    if turn.run(run_id).due(Timer.COMPARE) is not None:
        # Nobody knows yet which workers run the attempt: none may be left alive.
        seated = turn.state.places_of(run_id)
        there = [w for w in turn.state.workers_of(run_id) if w.state in _JOINED]
        if others := [worker for worker in there if worker.id not in seated]:
            unproven = tuple(Seat(worker=w.id, node=w.node, ranks=()) for w in others)
            attempt = turn.change_attempt(run_id, seats=attempt.seats + unproven, guessed=True)
    turn.change_attempt(run_id, state=AttemptState.STOPPING)
    turn.cancel_timer(run_id, Timer.START, Timer.STACKS, Timer.SILENT, Timer.COMPARE)
    turn.set_timer(run_id, Timer.STOP, STOP_SECONDS + grace)
    turn.set_timer(run_id, Timer.FENCE, FENCE_SECONDS + grace)
    told: dict[str, tuple[int, ...]] = {}
    for seat in attempt.seats:
        worker = turn.state.workers.get(seat.worker)
        if seat.stopped or worker is None:
            continue
        if worker.state is WorkerState.LOST:  # a command would wait for it: the cluster can act now
            _end_agent(turn, worker, "out of contact")
        else:
            told[seat.worker] = seat.ranks
    number = attempt.number
    turn.broadcast(
        run_id, told, StopAttempt, reason, attempt=number, grace_seconds=grace, reason=reason
    )


def add_seats(turn: Turn, run_id: str, workers: Iterable[Worker]) -> Attempt:
    """Seat workers that run the live attempt, with the next ranks as a guess; the attempt then.

    A seat that a worker got because it may run the attempt, without ranks, is replaced.
    """
    attempt = turn.state.attempts[run_id]
    per_node, workers = turn.run(run_id).spec.resources.processes_per_node, list(workers)
    proven = {worker.id for worker in workers}
    seats = [seat for seat in attempt.seats if seat.ranks or seat.worker not in proven]
    for worker in workers:
        first = len(seats) * per_node
        ranks = tuple(range(first, first + per_node))
        seats.append(Seat(worker=worker.id, node=worker.node, ranks=ranks))
    return turn.change_attempt(run_id, seats=tuple(seats), guessed=True)


def force_stop(turn: Turn, run_id: str) -> None:
    """End agents that have not answered a stop in `STOP_SECONDS` through the cluster.

    The cluster's confirmation comes back as WorkerLost; nothing is assumed before it.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state is not AttemptState.STOPPING:
        return
    for seat in attempt.seats:
        worker = turn.state.workers.get(seat.worker)
        if seat.stopped or worker is None:
            continue
        reason = f"no answer to a stop for {STOP_SECONDS:.0f} s"
        _end_agent(turn, worker, reason)


def _end_agent(turn: Turn, worker: Worker, reason: str) -> None:
    """End an agent through the cluster: its node is not to blame for that end.

    A node that is dead indeed has answered the probe of its agent, or shows in the cluster's list.
    """
    if worker.state in {WorkerState.READY, WorkerState.LOST}:
        turn.cancel_timer(worker.run, Timer.CONTACT, subject=worker.id)
        turn.change_worker(worker.id, state=WorkerState.STOPPING, reason=reason)
    turn.emit(StopWorker, worker.run, reason, worker=worker.id, node=worker.node)


def empty_seats(turn: Turn, run_id: str, workers: Iterable[str]) -> bool:
    """Mark the seats of workers as confirmed empty; True if the live attempt has no other seat.

    False without a live attempt, for workers without a seat, and as long as an attempt that was
    taken over may have agents that nobody knows of. There are two ways to get here: an agent says
    that its processes are gone, or the cluster says that the agent is.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in LIVE_ATTEMPT_STATES:
        return False
    # One new tuple for all: a gang of 2,000 must not cost 2,000 tuples of 2,000 seats.
    seats, places = list(attempt.seats), turn.state.places_of(run_id)
    for place in (places[worker] for worker in workers if worker in places):
        seat = seats[place]
        seats[place] = Seat(worker=seat.worker, node=seat.node, ranks=seat.ranks, stopped=True)
    turn.change_attempt(run_id, seats=tuple(seats))
    return all(seat.stopped for seat in seats) and not _has_unknown_agents(turn, attempt)


def _has_unknown_agents(turn: Turn, attempt: Attempt) -> bool:
    """True if an attempt that was taken over has fewer seats than its gang may have nodes.

    The rest of its agents are not in the database and may live where nobody hears them. So nobody
    confirms its death, and it is fenced; one that says hello meanwhile gets an order to stop. How
    many nodes the gang of an elastic run has is not known: the most that the spec allows. Agents
    that may run it as well (seats without ranks) say nothing about others.
    """
    known = sum(1 for seat in attempt.seats if seat.ranks)
    return attempt.guessed and known < turn.run(attempt.run).spec.resources.max_nodes


def record_stopped(turn: Turn, event: GangStopped) -> bool:
    """Record what stopped workers report: their port, their memory checkpoints, the last step.

    Returns True if no worker of the attempt has a process left. A worker that answers twice is
    recorded twice to the same effect.
    """
    for worker, port in zip(event.workers, event.ports, strict=False):
        if port:
            turn.change_worker(worker, port=port)
    workers = frozenset(event.workers)
    memory_tier.take_inventory(turn, event.run, event.attempt, workers, event.memory)
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    turn.change_run(run.id, best_step=max(run.best_step, event.last_step))
    turn.change_attempt(run.id, step=max(attempt.step, event.last_step))
    return empty_seats(turn, event.run, event.workers)


# the end


def hold(
    turn: Turn, run_id: str, why: str, incident: str | None = None, release: str = "tries again"
) -> None:
    """Hold a run in babysit's own name and page: the next step could not be undone.

    There are three ways to get here: no checkpoint can be trusted, a rollback would lose hours of
    work, and a verdict that says so (storage that stays unreadable). Time held is booked as queued.

    Args:
        turn: The turn.
        run_id: The run.
        why: The reason, as a clause.
        incident: The incident behind it, if there is one.
        release: What `babysit release` leads to, as a verb phrase.
    """
    run = turn.run(run_id)
    reason = (
        f"held by babysit: {why}; `babysit release {run.name}` {release},"
        f" `babysit rollback {run.name} --to STEP` goes on from another step (0: begins again)"
    )
    book = time_ledger.switch(run.ledger, Bucket.QUEUED, turn.now)
    turn.change_run(run_id, state=RunState.HELD, held_from=run.state, reason=reason, ledger=book)
    turn.notify(run_id, Severity.CRITICAL, f"{run.name} is {reason}", incident, kind="run_held")


def finish_run(turn: Turn, run_id: str, state: RunState, reason: str, died_of: str = "") -> None:
    """End a run: its workers leave, its timers stop, its incidents are resolved. Terminal.

    There are four ways to get here: its last rank exited with code 0, a person cancelled it, a
    verdict or a budget ended it, or `max_runtime` has passed. Its checkpoints stay. `died_of` is
    the signature of an error of its own, for runs of the same program.
    """
    run = turn.run(run_id)
    for incident in turn.state.incidents_of(run_id):
        turn.resolve_incident(incident.id, f"the run ended: {state}")
    for worker in turn.state.workers_of(run_id):
        worker_placement.end_worker(turn, worker, f"{run.name} {state}")
    if run.started_at is not None:
        queue = turn.state.queues.get(run.spec.queue) or Queue(name=run.spec.queue)
        turn.put(usage_history.remembered(queue, run, turn.now, died_of))
    run = turn.run(run_id)
    turn.change_run(
        run_id,
        state=state,
        reason=reason,
        ended_at=turn.now,
        timers={},
        decision=None,
        held_from=None,
        ledger=time_ledger.switch(run.ledger, Bucket.QUEUED, turn.now),
    )
    if state is RunState.FAILED:
        turn.notify(run_id, Severity.CRITICAL, f"{run.name} failed: {reason}", kind="run_failed")
    turn.schedule_wanted = True
