"""The facts of a run for the scheduler's snapshot, but for the time; kept until the run changes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from babysit.wire import Tier
from orchestrator.core.model.entities import Attempt, Queue, Run, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import LIVE_ATTEMPT_STATES, Trust, WorkerState
from orchestrator.core.scheduling import Demand


class RunFacts:
    """The facts of one run for the snapshot, but for the time; kept in `State.derived`.

    Thousands of runs wait or train unchanged from one pass to the next.

    Attributes:
        demand: Its demand, where that does not depend on the time; None: not made yet, or it does.
        workers: Its workers that have not ended.
        rests: True if it leaves no node and decides nothing.
        nodes, surplus, attempt, since: Of a run that rests: its nodes, those above its minimum, its
            live attempt, and when its work was last safe.
        history: Its queue as of `usual_end`.
        usual_end: When the run ends if it lasts as long as others of its name.
    """

    __slots__ = (
        "attempt",
        "demand",
        "history",
        "nodes",
        "rests",
        "since",
        "surplus",
        "usual_end",
        "workers",
    )

    def __init__(self, state: State, run: Run) -> None:
        self.demand: Demand | None = None
        every = state.workers_of(run.id)
        self.workers = tuple(w for w in every if w.state is not WorkerState.ENDED)
        self.rests = run.decision is None and not any(
            w.state is WorkerState.STOPPING or w.stopping_at is not None for w in self.workers
        )
        self.history: Queue | None = None
        self.usual_end: dt.datetime | None = None
        if self.rests and self.workers:
            self.nodes = tuple(worker.node for worker in self.workers)
            self.surplus = surplus_of(state, run, self.workers)
            self.attempt = live_attempt(state, run)
            self.since = saved_at(state, run, self.attempt)


def facts_of(state: State, run: Run) -> RunFacts:
    """The facts of a run of the state, as they are now."""
    known = state.derived.of(run.id)
    if not isinstance(known, RunFacts):
        known = RunFacts(state, run)
        state.derived.keep(run.id, known)
    return known


def live_attempt(state: State, run: Run) -> Attempt | None:
    """The newest attempt of a run if it is live; else None."""
    attempt = state.attempts.get(run.id)
    return attempt if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES else None


def surplus_of(state: State, run: Run, workers: Sequence[Worker]) -> tuple[str, ...]:
    """Nodes above the minimum, the most dispensable first: standbys, then the last seats."""
    fewest = run.spec.resources.min_nodes
    if len(workers) <= fewest:
        return ()
    # Standbys have no seat and sort last; ranks of the last seats have the highest numbers, so the
    # remaining ranks keep theirs.
    seats = state.places_of(run.id) if live_attempt(state, run) is not None else {}
    last = len(seats)
    ordered = sorted(workers, key=lambda worker: seats.get(worker.id, last))
    return tuple(worker.node for worker in reversed(ordered[fewest:]))


def saved_at(state: State, run: Run, attempt: Attempt | None) -> dt.datetime | None:
    """Since when work is lost if the run stops: its last save, or its start; None: it has none."""
    if attempt is None:
        return None
    saved = [
        checkpoint.created_at
        for checkpoint in state.checkpoints_of(run.id)
        if checkpoint.tier is Tier.DIRECTORY
        and checkpoint.trust not in {Trust.WRITING, Trust.BAD}
        and not checkpoint.superseded
        and checkpoint.deleted_at is None
    ]
    # Memory checkpoints do not count: they are lost with the nodes that the run must leave.
    return max([attempt.started_at, *saved])
