"""Preemption: a run saves and leaves nodes, for another run, for a drain, or to grow.

It costs the run no budget, since nothing failed. The run gets its grace to save; what it
cannot save in that time it computes again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from monitors.failures import Cause, FailureClass
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.model.decisions import Restart, Vacate
from orchestrator.core.model.entities import Run
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    RUNNABLE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    RunState,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.placement import snapshot
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.policy import elasticity
from orchestrator.core.policy.time_limits import grace_seconds
from orchestrator.core.scheduling import Eviction
from orchestrator.core.text import named
from orchestrator.core.turn import Turn

_WHY = {
    "priority": "which has a higher priority",
    "surplus": "which waits for the nodes that this run has above its minimum",
    "reclaim": "whose queue takes back what was borrowed",
    "order": "which is ahead in the queue",
}


def asked(turn: Turn, run: Run, reason: str, *, remedy: Remedy = Remedy.AS_ASKED) -> Restart:
    """The record of a restart that no failure caused; it spends no budget.

    `failed_at` is now: the lost time begins with the request.
    """
    return Restart(
        attempt=run.attempt + 1,
        cause=Cause.OPERATOR,
        failure_class=FailureClass.UNKNOWN,
        reason=reason,
        remedy=remedy,
        failed_at=turn.now,
        detected_at=turn.now,
        best_step=run.best_step,
    )


def ask(turn: Turn, run: Run, restart: Restart, give_back: tuple[str, ...] = ()) -> bool:
    """Have the live attempt save and end, for a preemption, a drain or growth.

    Returns False, and does nothing, if there is no attempt that can be stopped now: the run is over
    or held, has no live attempt, or is being restarted for another reason. Then the caller takes
    the nodes without it, or comes again.
    """
    attempt = turn.attempt(run.id)
    if (
        run.state in TERMINAL_RUN_STATES
        or turn.held(run.id)  # its release looks again
        or run.decision is not None
        or attempt is None
        or attempt.state not in RUNNABLE_ATTEMPT_STATES
    ):
        return False
    restart = dataclasses.replace(
        restart, cause=Cause.PREEMPTION, failure_class=FailureClass.PREEMPTION
    )
    turn.change_run(
        run.id,
        decision=Vacate(restart=restart, nodes=give_back),
        state=RunState.RECOVERING,
        reason=restart.reason,
    )
    attempt_lifecycle.stop_attempt(turn, run.id, restart.reason, grace=grace_seconds(run))
    return True


def have_no_seat(turn: Turn, run_id: str, nodes: Container[str]) -> bool:
    """True if a run has a live attempt, and no seat of it is on these nodes.

    Then they hold standbys, or workers that an elastic run is about to take in: they can leave
    without a restart.
    """
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state not in LIVE_ATTEMPT_STATES:
        return False
    seated = turn.state.places_of(run_id)
    workers = turn.state.workers_of(run_id)
    return not any(worker.id in seated for worker in workers if worker.node in nodes)


def evict(turn: Turn, eviction: Eviction) -> None:
    """Take nodes from one run for another, as the scheduler has planned.

    A run that trains on them saves first. A run that only holds them while it waits, or whose
    agents are still starting, gives them back at once; so does one that trains on other nodes.
    """
    run, by = turn.run(eviction.run), turn.run(eviction.by)
    if have_no_seat(turn, run.id, eviction.nodes):
        reason = f"{named(eviction.nodes)} left to {by.name}, {_WHY[eviction.why]}"
        worker_placement.end_workers(turn, run.id, eviction.nodes, reason)
        return
    whole = len(eviction.nodes) == len(snapshot.kept(turn.state, run))
    some = "one node" if len(eviction.nodes) == 1 else f"{len(eviction.nodes)} nodes"
    what = "leaves its nodes" if whole else f"leaves {some} and goes on"
    reason = f"{what} for {by.name}, {_WHY[eviction.why]}"
    restart = asked(turn, run, reason, remedy=Remedy.PREEMPTED if whole else Remedy.SHRINK)
    turn.record(
        run.id, f"{reason}; it loses {eviction.lost_gpu_seconds:.0f} GPU s if it cannot save"
    )
    if not ask(turn, run, restart, eviction.nodes):
        worker_placement.end_workers(turn, run.id, eviction.nodes, reason)


def grow(turn: Turn, run_id: str) -> None:
    """Restart an elastic run with more nodes, once it has more ready agents than it uses.

    Standbys do not count: the spec keeps them idle.

    Not before the attempt has run for its `grow_after`: each growth costs a restart.
    """
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    workers = turn.state.workers_of(run_id)
    if attempt is None or any(worker.state is WorkerState.LAUNCHING for worker in workers):
        return
    ready = sum(worker.state is WorkerState.READY for worker in workers)
    seats, most = len(attempt.seats), run.spec.resources.max_nodes
    target = min(most, ready - run.spec.placement.standbys)
    if target > seats and elasticity.may_grow(attempt, turn.now):
        reason = f"grows from {seats} to {target} nodes"
        ask(turn, run, asked(turn, run, reason, remedy=Remedy.GROW))
