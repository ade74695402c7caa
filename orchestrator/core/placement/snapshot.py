"""The state as a scheduling pass sees it: what each run has, and what it wants."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from babysit.wire import Tier
from orchestrator.core.model.decisions import CarriedOut, Vacate, awaits_attempt
from orchestrator.core.model.entities import Attempt, Run, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.policy import recovery, time_limits, usage_history
from orchestrator.core.scheduling import Demand, Holding, Snapshot
from orchestrator.core.scheduling.spares import failure_rate, pool_size
from orchestrator.core.scheduling.types import accounted_gpus

GROW_SECONDS = 600.0
"""An elastic run that has just started does not grow before this: growth costs a restart."""
STANDBY_SECONDS = 30.0
"""A standby that took over is replaced after this: first the run shall go on."""
RESTART_SECONDS = 60.0
"""What a restart costs a run that is asked to leave, beside the work since its last save."""
FAULT_DAYS = 30.0
"""Faults of nodes count for the failure rate for so long."""
_COMING = frozenset({WorkerState.LAUNCHING, WorkerState.READY, WorkerState.LOST})


def wants_nodes(state: State, run: Run) -> bool:
    """Whether the run should have nodes now: no hold, no live attempt, nothing to wait for."""
    return not state.fleet.hold and wants_when_released(state, run)


def wants_when_released(state: State, run: Run) -> bool:
    """The same, but for a hold over everything."""
    if run.state in TERMINAL_RUN_STATES or run.state is RunState.HELD:
        return False
    if _live_attempt(state, run) is not None:
        return False
    return awaits_attempt(run.decision)


def _live_attempt(state: State, run: Run) -> Attempt | None:
    attempt = state.attempts.get(run.id)
    return attempt if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES else None


def kept(state: State, run: Run) -> list[Worker]:
    """Workers the run has or is getting."""
    return [w for w in state.workers_of(run.id) if w.state in _COMING]


def snapshot(state: State, now: dt.datetime, extra: Sequence[Run] = ()) -> Snapshot:
    """Everything a pass looks at.

    Args:
        state: What the core knows.
        now: The moment.
        extra: Runs that are not in the state: what would become of them, if not everything is held?
    """
    wants = wants_when_released if extra else wants_nodes
    wanting = [run for run in state.live_runs() if wants(state, run)]
    demands = (demand_of(state, run, now) for run in (*wanting, *extra))
    return Snapshot(
        table=state.rooms,
        holdings=[
            each for run, workers in state.tenants() for each in _held(state, run, workers, now)
        ],
        demands=[demand for demand in demands if demand.nodes > 0 or demand.unwanted],
        quotas=list(state.queues.values()),
        usage=usage_history.usage_by_project(state, now),
        spares=spare_pool(state, now),
    )


def anybody_wants(state: State, now: dt.datetime) -> bool:
    """Whether a pass could give nodes to anyone: a cheap look before a dear one.

    Most events that call for a pass find every gang whole: a rank died, a node came back.
    """
    for run in state.live_runs():
        if wants_nodes(state, run):
            own = kept(state, run)
            if len(own) < run.spec.resources.min_nodes or _unwanted(run, own):
                return True
        elif _wants(state, run, len(kept(state, run)), now):
            return True
    return False


def demand_of(state: State, run: Run, now: dt.datetime) -> Demand:
    """What the run still misses."""
    need, own = run.spec.resources, kept(state, run)
    looping = recovery.restarts_in_vain(run)
    gave = isinstance(run.decision, Vacate) and bool(run.decision.nodes)
    most = need.max_nodes + run.spec.placement.standbys
    return Demand(
        run=run.id,
        name=run.name,
        need=need,
        nodes=max(0, need.min_nodes - len(own)),
        more=max(0, most - max(len(own), need.min_nodes)),
        queue=run.spec.queue,
        project=run.spec.project,
        priority=run.spec.priority,
        submitted_at=run.submitted_at,
        pack=run.spec.placement.pack,
        recovers=run.attempt > 0 and not gave and looping < recovery.PATIENCE,
        may_preempt=looping < recovery.PATIENCE,
        keeps=tuple(worker.node for worker in own),
        unwanted=_unwanted(run, own),
        avoid=run.avoid,
        ends_within=time_limits.ends_within(run, now),
        claim=run.claim,
    )


def _unwanted(run: Run, own: Iterable[Worker]) -> tuple[str, ...]:
    """Nodes that the run avoids. An agent that is coming up on one is its last resort: it stays."""
    if not run.avoid:
        return ()
    return tuple(w.node for w in own if w.state is WorkerState.READY and w.node in run.avoid)


def _held(state: State, run: Run, workers: list[Worker], now: dt.datetime) -> list[Holding]:
    """What a run has, and what it is about to leave."""
    going = leaving(run, workers)
    gone = {worker.id for worker in going}  # by worker: a new one may come up on a node it leaves
    staying = [worker for worker in workers if worker.id not in gone]
    found = []
    if going:
        nodes = tuple(worker.node for worker in going)
        found.append(_holding(run, nodes, leaving=True, movable=False, ends_at=now))
    if staying:
        found.append(
            _holding(
                run,
                tuple(worker.node for worker in staying),
                ends_at=usage_history.expected_end(state, run, now),
                ends_within=time_limits.ends_within(run, now),
                lost_gpu_seconds=lost_gpu_seconds(state, run, len(staying), now),
                surplus=_surplus(state, run, staying),
                wants=_wants(state, run, len(staying), now),
                movable=run.state is not RunState.HELD and run.decision is None,
            )
        )
    return found


def _surplus(state: State, run: Run, workers: list[Worker]) -> tuple[str, ...]:
    """Nodes that a run could go without, the first to go first: standbys, then the last seats."""
    fewest = run.spec.resources.min_nodes
    if len(workers) <= fewest:
        return ()
    seats = state.places_of(run.id) if _live_attempt(state, run) is not None else {}
    last = len(seats)
    ordered = sorted(workers, key=lambda worker: seats.get(worker.id, last))
    return tuple(worker.node for worker in reversed(ordered[fewest:]))


def leaving(run: Run, workers: Iterable[Worker]) -> list[Worker]:
    """Workers whose nodes a run is about to leave.

    Under a hold it keeps those it was asked for: nothing is done about it before the release. Once
    that is decided, workers on them are stopping; whatever it has there later, it has anew.
    """
    decision = run.decision
    left: frozenset[str] = frozenset()
    if isinstance(decision, Vacate) and run.state is not RunState.HELD:
        left = frozenset() if isinstance(decision.stage, CarriedOut) else frozenset(decision.nodes)
    return [w for w in workers if w.state is WorkerState.STOPPING or w.node in left]


def _holding(run: Run, nodes: tuple[str, ...], **facts: object) -> Holding:
    return Holding(
        run=run.id,
        need=run.spec.resources,
        nodes=nodes,
        queue=run.spec.queue,
        project=run.spec.project,
        priority=run.spec.priority,
        pack=run.spec.placement.pack,
        avoid=run.avoid,
        **facts,  # type: ignore[arg-type]  # fields of Holding, from the two calls above
    )


def lost_gpu_seconds(state: State, run: Run, nodes: int, now: dt.datetime) -> float:
    """What it costs to stop a run: work since its last save, if it cannot save now; the restart.

    To come up is work too: else a run that is just loading would be asked again and again.
    """
    gpus = nodes * accounted_gpus(run.spec.resources)
    attempt = _live_attempt(state, run)
    if attempt is None:
        return 0.0
    saved = [
        checkpoint.created_at
        for checkpoint in state.checkpoints_of(run.id)
        if checkpoint.tier is Tier.DIRECTORY
        and checkpoint.trust not in {Trust.WRITING, Trust.BAD}
        and checkpoint.deleted_at is None
    ]
    since = max([attempt.started_at, *saved])
    return gpus * (max(0.0, (now - since).total_seconds()) + RESTART_SECONDS)


def _wants(state: State, run: Run, nodes: int, now: dt.datetime) -> int:
    """More nodes a run with a live attempt could use: standbys, and growth once it runs well."""
    attempt = _live_attempt(state, run)
    quiet = run.decision is None and run.state is not RunState.HELD and not state.fleet.hold
    paused = run.due(Timer.STANDBY) is not None  # the last one did not last
    if attempt is None or not quiet or paused or attempt.state is AttemptState.STOPPING:
        return 0
    standbys = run.spec.placement.standbys
    if len(attempt.seats) < run.spec.resources.max_nodes and may_grow(attempt, now):
        return max(0, run.spec.resources.max_nodes + standbys - nodes)
    return max(0, len(attempt.seats) + standbys - nodes)


def may_grow(attempt: Attempt, now: dt.datetime) -> bool:
    """Whether an attempt has run for long enough to be worth another start."""
    ran = (now - attempt.started_at).total_seconds()
    return attempt.state is AttemptState.RUNNING and ran >= GROW_SECONDS


def spare_pool(state: State, now: dt.datetime) -> int:
    """Idle nodes kept for recoveries; auto: the P99 of the nodes that fail in a repair time."""
    if state.fleet.spares != "auto":
        return state.fleet.spares
    nodes = [node for node in state.nodes.values() if node.state is not NodeState.GONE]
    recent = dt.timedelta(days=FAULT_DAYS)
    failures = sum(now - fault.at <= recent for node in nodes for fault in node.faults)
    days = sum(
        min(FAULT_DAYS, (now - (node.since or now)).total_seconds() / 86400.0) for node in nodes
    )
    return pool_size(len(nodes), failure_rate(failures, days))
