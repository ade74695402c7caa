"""Gangs: getting nodes and workers for a run, and starting and stopping its attempts."""

from __future__ import annotations

import dataclasses

from jobs.commands import RestoreCandidate, StartAttempt, StopAttempt
from jobs.events import (
    AttemptStopped,
    RankReady,
    RankRestored,
    RanksStarted,
    WorkerJoined,
)
from monitors.types import Severity
from orchestrator.core import (
    demanding,
    history,
    leaving,
    ledger,
    memory_tier,
    placing,
    recovery,
    seating,
)
from orchestrator.core.entities import Attempt, Checkpoint, Queue, Run, Seat
from orchestrator.core.instructions import StopWorker
from orchestrator.core.ledger import Bucket
from orchestrator.core.states import (
    LIVE_ATTEMPT_STATES,
    RUNNABLE_ATTEMPT_STATES,
    AttemptState,
    RunState,
    WorkerState,
)
from orchestrator.core.turn import Turn

STOP_SECONDS = 30.0
"""An agent that has not answered StopAttempt after this long is ended through the cluster."""
START_SECONDS = 300.0
"""An agent that has not started its ranks after this long fails the attempt (row 24)."""
SILENT_SECONDS = 60.0
"""Without `babysit.init()` for this long, a script counts as one that does not report."""
FENCE_SECONDS = 120.0
"""An attempt that cannot be confirmed dead after this long is fenced."""


# getting nodes


def schedule(turn: Turn) -> None:
    """Launch workers for the runs that fit; say of the others why they wait.

    Start the gangs that are whole.
    """
    wanting = [run for run in turn.state.live_runs() if demanding.wants_nodes(turn.state, run)]
    for run in wanting:
        placing.leave_bad_nodes(turn, run)
    outcome = placing.current_plan(turn.state, turn.now)
    for run_id, nodes in outcome.leaves.items():
        placing.end_workers(turn, run_id, nodes, "the gang moves to be close together")
    for run_id, nodes in outcome.placements.items():
        placing.placed(turn, run_id, nodes)
    for nodes_of in (outcome.placements, outcome.growth):
        for run_id, nodes in nodes_of.items():
            placing.launch(turn, run_id, nodes)
    for eviction in outcome.evictions:
        leaving.evict(turn, eviction)
    for wait in outcome.waits.values():
        placing.waits(turn, wait, outcome.claims.get(wait.run))
    for run in wanting:
        start_if_whole(turn, run.id)


# workers


def on_joined(turn: Turn, event: WorkerJoined) -> None:
    """An agent is ready to start ranks."""
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.LAUNCHING:
        turn.record(event.run, f"{event.worker} joined, but is not expected: ignored")
        return
    turn.cancel_timer(event.run, f"launch:{worker.id}")
    turn.change_worker(
        worker.id,
        state=WorkerState.READY,
        joined_at=turn.now,
        address=event.address,
        port=event.port,
        reason="joined",
    )
    start_if_whole(turn, event.run)


# attempts


def start_if_whole(turn: Turn, run_id: str) -> None:
    """Start the next attempt once every worker of the gang is ready."""
    run = turn.run(run_id)
    if not demanding.wants_nodes(turn.state, run):
        leaving.grow(turn, run_id)
        return
    workers = turn.state.workers_of(run_id)
    ready = [w for w in workers if w.state is WorkerState.READY]
    most = run.spec.resources.max_nodes
    more_to_come = any(w.state is WorkerState.LAUNCHING for w in workers)
    if len(ready) < run.spec.resources.min_nodes or (len(ready) < most and more_to_come):
        return
    _start_attempt(turn, run, seating.seats(turn, run, ready[:most]))


def _start_attempt(turn: Turn, run: Run, seats: tuple[Seat, ...]) -> None:
    number = run.attempt + 1
    world_size = sum(len(seat.ranks) for seat in seats)
    candidates = _candidates(turn, run, seats, world_size)
    known = turn.state.checkpoints_of(run.id)
    if not candidates and recovery.has_lost_its_past(run, turn.attempt(run.id), known):
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
    turn.put(
        Attempt(
            run=run.id,
            number=number,
            seats=seats,
            world_size=world_size,
            restart=restart,
            candidates=tuple(c.id for c in candidates),
            started_at=turn.now,
        )
    )
    newest = f"step {candidates[0].step} ({candidates[0].tier})" if candidates else "the beginning"
    reason = f"attempt {number} starts from {newest} on {', '.join(seat.node for seat in seats)}"
    state = RunState.STARTING if number == 1 else RunState.RECOVERING
    turn.change_run(
        run.id,
        state=state,
        attempt=number,
        decision=None,
        pending=None,
        reason=reason,
        started_at=run.started_at or turn.now,
        ledger=ledger.switch(run.ledger, Bucket.STARTING, turn.now),
    )
    turn.set_timer(run.id, "start", START_SECONDS)
    if len(seats) < run.spec.resources.max_nodes:
        turn.set_timer(run.id, "grow", demanding.GROW_SECONDS)
    elif run.spec.placement.spares:
        turn.set_timer(run.id, "grow", demanding.STANDBY_SECONDS)
    master = turn.state.workers[seats[0].worker]
    offered = tuple(
        RestoreCandidate(
            id=c.id,
            step=c.step,
            tier=c.tier,
            path=c.path,
            world_size=c.world_size,
            attempt=c.attempt,
        )
        for c in candidates
    )
    for index, seat in enumerate(seats):
        turn.tell(
            seat.worker,
            StartAttempt,
            reason,
            attempt=number,
            ranks=seat.ranks,
            world_size=world_size,
            node_rank=index,
            nodes=len(seats),
            master_address=master.address,
            master_port=master.port,
            restore=offered,
            skip_batches=run.skip_batches,
        )


CANDIDATES = 8
"""Checkpoints offered to an attempt: it falls back along the list by itself."""


def _candidates(turn: Turn, run: Run, seats: tuple[Seat, ...], world_size: int) -> list[Checkpoint]:
    decision = run.decision
    homes = {rank: seat.worker for seat in seats for rank in seat.ranks}
    return recovery.trusted(
        turn.state.checkpoints_of(run.id),
        run=run,
        homes=homes,
        world_size=world_size,
        before_step=decision.onset_step if decision else None,
        to_step=decision.to_step if decision else None,
    )[:CANDIDATES]


def stop_attempt(turn: Turn, run_id: str, reason: str, *, grace: float = 0.0) -> None:
    """Kill what is left of the live attempt.

    `attempt_dead` is reached when every seat is confirmed empty.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    turn.change_attempt(run_id, state=AttemptState.STOPPING)
    turn.cancel_timer(run_id, "start", "stacks", "silent")
    turn.set_timer(run_id, "stop", STOP_SECONDS + grace)
    turn.set_timer(run_id, "fence", FENCE_SECONDS + grace)
    for seat in attempt.seats:
        worker = turn.state.workers.get(seat.worker)
        if seat.stopped or worker is None:
            continue
        if worker.state is WorkerState.LOST:
            turn.emit(StopWorker, run_id, "out of contact", worker=worker.id, node=worker.node)
        else:
            turn.tell(
                seat.worker,
                StopAttempt,
                reason,
                attempt=attempt.number,
                grace_seconds=grace,
                reason=reason,
            )


def force_stop(turn: Turn, run_id: str) -> None:
    """Agents that did not answer in time are ended through the cluster."""
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state is not AttemptState.STOPPING:
        return
    for seat in attempt.seats:
        worker = turn.state.workers.get(seat.worker)
        if not seat.stopped and worker is not None:
            turn.emit(
                StopWorker,
                run_id,
                f"no answer to a stop for {STOP_SECONDS:.0f} s",
                worker=worker.id,
                node=worker.node,
            )


def empty_seat(turn: Turn, run_id: str, worker: str) -> bool:
    """Mark a seat as confirmed empty; True when it was the last one of a live attempt."""
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in LIVE_ATTEMPT_STATES:
        return False
    seats = tuple(
        dataclasses.replace(seat, stopped=True) if seat.worker == worker else seat
        for seat in attempt.seats
    )
    turn.change_attempt(run_id, seats=seats)
    return all(seat.stopped for seat in seats)


def on_stopped(turn: Turn, event: AttemptStopped) -> bool:
    """A worker has no process of the attempt left. True when none has."""
    turn.change_worker(event.worker, port=event.port or turn.state.workers[event.worker].port)
    memory_tier.take_inventory(turn, event)
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    turn.change_run(run.id, best_step=max(run.best_step, event.last_step))
    turn.change_attempt(run.id, step=max(attempt.step, event.last_step))
    return empty_seat(turn, event.run, event.worker)


# coming up


def on_ranks_started(turn: Turn, event: RanksStarted) -> None:
    """Processes exist. Whether their script ever reports remains to be seen."""
    turn.record(event.run, f"ranks {', '.join(map(str, event.ranks))} started")
    attempt = turn.state.attempts[event.run]
    started = attempt.started_ranks.union(event.ranks)
    turn.change_attempt(event.run, started_ranks=started)
    if len(started) == attempt.world_size:
        turn.cancel_timer(event.run, "start")
    if attempt.state is AttemptState.STARTING and not turn.run(event.run).instrumented:
        turn.set_timer(event.run, "silent", SILENT_SECONDS)


def on_ready(turn: Turn, event: RankReady) -> None:
    """A rank is past its imports."""
    attempt = turn.state.attempts[event.run]
    ready = attempt.ready_ranks | {event.rank}
    attempt = turn.change_attempt(event.run, ready_ranks=ready)
    turn.cancel_timer(event.run, "silent")
    run = turn.change_run(event.run, instrumented=True)
    if len(ready) == attempt.world_size:
        if attempt.first_step_at is None:  # agents speak in turn: steps may be known already
            book = ledger.switch(run.ledger, Bucket.RESTORING, turn.now)
            run = turn.change_run(run.id, ledger=book)
        if attempt.restart is not None:
            turn.change_attempt(
                run.id, restart=dataclasses.replace(attempt.restart, ready_at=turn.now)
            )


def on_restored(turn: Turn, event: RankRestored) -> bool:
    """A rank loaded its state. False when the ranks did not load the same step."""
    attempt = turn.state.attempts[event.run]
    if attempt.restored_ranks and event.step != attempt.start_step:
        return False
    restored = attempt.restored_ranks | {event.rank}
    attempt = turn.change_attempt(
        event.run,
        restored_ranks=restored,
        restored=event.checkpoint or None,
        start_step=event.step,
        milestone=event.step + 1,
        step=max(attempt.step, event.step),
    )
    if len(restored) == attempt.world_size:
        run = turn.run(event.run)
        again = attempt.restart is not None and event.step < attempt.restart.best_step
        bucket = Bucket.LOST if again else Bucket.PRODUCTIVE
        turn.change_run(run.id, ledger=ledger.switch(run.ledger, bucket, turn.now))
        if attempt.restart is not None:
            turn.change_attempt(
                run.id,
                restart=dataclasses.replace(
                    attempt.restart, restored_at=turn.now, resumed_step=event.step
                ),
            )
    return True


# the end


def hold(turn: Turn, run_id: str, why: str, incident: str | None = None) -> None:
    """Stop here and page: what would come next cannot be undone."""
    run = turn.run(run_id)
    reason = (
        f"held by babysit: {why}; `babysit release` tries again,"
        " `babysit rollback --to STEP` goes on from another step (0: begins again)"
    )
    book = ledger.switch(run.ledger, Bucket.QUEUED, turn.now)
    turn.change_run(
        run_id, state=RunState.HELD, held_from=run.state, reason=reason, pending=None, ledger=book
    )
    turn.notify(run_id, Severity.CRITICAL, f"{run.name} is {reason}", incident)


def finish_run(turn: Turn, run_id: str, state: RunState, reason: str) -> None:
    """End a run: workers leave, timers stop, incidents close. Terminal."""
    run = turn.run(run_id)
    for incident in turn.state.incidents_of(run_id):
        turn.resolve_incident(incident.id, f"the run ended: {state}")
    for worker in turn.state.workers_of(run_id):
        placing.end_worker(turn, worker, f"{run.name} {state}")
    if run.started_at is not None:
        queue = turn.state.queues.get(run.spec.queue) or Queue(name=run.spec.queue)
        turn.put(history.remembered(queue, run, turn.now))
    run = turn.run(run_id)
    turn.change_run(
        run_id,
        state=state,
        reason=reason,
        ended_at=turn.now,
        timers={},
        decision=None,
        pending=None,
        claim=None,
        held_from=None,
        ledger=ledger.switch(run.ledger, Bucket.QUEUED, turn.now),
    )
    if state is RunState.FAILED:
        turn.notify(run_id, Severity.CRITICAL, f"{run.name} failed: {reason}")
    turn.schedule_wanted = True
