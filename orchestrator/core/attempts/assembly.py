"""From nodes to a gang: a scheduling pass is carried out, agents join, and whole gangs start."""

from __future__ import annotations

from jobs.events import CheckpointsFound, WorkerJoined
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.attempts import preemption, rank_assignment, replay_seats
from orchestrator.core.checkpoints import on_disk
from orchestrator.core.model.checking import CheckPurpose
from orchestrator.core.model.entities import Run
from orchestrator.core.model.states import WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import node_checks, snapshot
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.placement.bulkhead import on_behalf_of
from orchestrator.core.text import named
from orchestrator.core.turn import Turn


def schedule(turn: Turn) -> None:
    """One scheduling pass: plan for all runs, carry the plan out, start the gangs that are whole.

    The order matters: nodes are left before they are given away, and gangs start last, when all
    workers that the pass ends have left their runs. Each run that must wait gets its reason.

    Raises:
        PassFailedError: The pass failed over one run, which it names; the turn is half done. The
            controller sets that run aside and begins the pass again.
    """
    wanting = [run for run in turn.state.live_runs() if snapshot.wants_nodes(turn.state, run)]
    for run in wanting:
        with on_behalf_of(run.id):
            worker_placement.leave_unusable_nodes(turn, run)
    outcome = worker_placement.current_plan(turn.state, turn.now)
    for run_id, nodes in outcome.leaves.items():
        with on_behalf_of(run_id):
            worker_placement.end_workers(turn, run_id, nodes, _why_left(turn.run(run_id), nodes))
    for run_id, nodes in outcome.placements.items():
        with on_behalf_of(run_id):
            worker_placement.placed(turn, run_id, nodes)
    for nodes_of in (outcome.placements, outcome.growth):
        for run_id, nodes in nodes_of.items():
            with on_behalf_of(run_id):
                worker_placement.launch(turn, run_id, nodes)
    for eviction in outcome.evictions:
        with on_behalf_of(eviction.run):
            preemption.evict(turn, eviction)
    for wait in outcome.waits.values():
        with on_behalf_of(wait.run):
            worker_placement.waits(turn, wait, outcome.claims.get(wait.run))
    for run in wanting:
        with on_behalf_of(run.id):
            start_if_whole(turn, run.id)
    turn.schedule_wanted |= bool(outcome.unfinished)


def _why_left(run: Run, nodes: tuple[str, ...]) -> str:
    if set(nodes) <= set(run.avoid):
        return f"leaving {named(nodes)}, which the run avoids"
    return "the gang moves to be close together"


def on_joined(turn: Turn, event: WorkerJoined) -> None:
    """An agent is ready to start ranks; with the last of its gang the next attempt starts.

    A worker that is not expected (it joined twice, or has been stopped since) is recorded and
    ignored.
    """
    worker = turn.state.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.LAUNCHING:
        turn.record(event.run, f"{event.worker} joined, but is not expected: ignored")
        return
    turn.cancel_timer(event.run, Timer.LAUNCH, subject=worker.id)
    turn.change_worker(
        worker.id,
        state=WorkerState.READY,
        joined_at=turn.now,
        address=event.address,
        port=event.port,
        reason="joined",
    )
    node = turn.state.nodes.get(worker.node)
    if (
        event.checks
        and node is not None
        and not node_checks.on_results(turn, node, event.checks, CheckPurpose.IDLE)
    ):
        why = f"{worker.node} failed a check before it joined"
        worker_placement.end_worker(turn, turn.state.workers[worker.id], why)
        return
    if worker.node in turn.run(event.run).avoid:
        turn.schedule_wanted = True  # a ready worker may move to a node that the run does not avoid
    start_if_whole(turn, event.run)


def on_checkpoints_found(turn: Turn, event: CheckpointsFound) -> None:
    """An agent has looked at the disk; the attempt that waited for it starts."""
    on_disk.on_found(turn, event)
    start_if_whole(turn, event.run)


def start_if_whole(turn: Turn, run_id: str) -> None:
    """Start the next attempt if every worker of the gang is ready; grow a run that trains already.

    Where reports may have been lost, an agent first looks which checkpoints there are.

    An elastic run starts with `min_nodes` ready, but waits for workers that are still being
    launched.
    """
    run = turn.run(run_id)
    if not snapshot.wants_nodes(turn.state, run):
        preemption.grow(turn, run_id)
        return
    if turn.state.joined(run_id) < run.spec.resources.min_nodes:
        return  # known without looking at each of thousands
    workers = turn.state.workers_of(run_id)
    ready = [w for w in workers if w.state is WorkerState.READY]
    most = run.spec.resources.max_nodes
    more_to_come = any(w.state is WorkerState.LAUNCHING for w in workers)
    if len(ready) < run.spec.resources.min_nodes or (len(ready) < most and more_to_come):
        return
    if run.look_at_disk:
        on_disk.look(turn, run, ready)
        return
    seats = rank_assignment.assign_ranks(turn, run, ready[:most])
    attempt_lifecycle.start_attempt(turn, run, replay_seats.seats_for_replay(turn, run, seats))
