"""The scheduler's view of the state: the nodes that each run holds, and those it requests.

A node counts as held from the launch of its agent until the cluster confirms the agent's end, so
that no plan uses a node twice. Times are UTC, durations are seconds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.core.model.decisions import CarriedOut, Finish, Vacate, awaits_attempt
from orchestrator.core.model.entities import Run, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    TERMINAL_RUN_STATES,
    AttemptState,
    RunState,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement.run_facts import (
    RunFacts,
    facts_of,
    live_attempt,
    saved_at,
    surplus_of,
)
from orchestrator.core.policy import elasticity, recovery, time_limits, usage_history
from orchestrator.core.policy import spare_pool as spare_pools
from orchestrator.core.scheduling import Demand, Holding, Snapshot
from orchestrator.core.scheduling.types import accounted_gpus
from orchestrator.errors import PassFailedError

STANDBY_SECONDS = 30.0
"""Seconds before a used standby is replaced; the run must continue first."""
RESTART_SECONDS = 60.0
"""Seconds that a restart costs a preempted run, besides the work since its last save."""
OVERDUE_SECONDS = 60.0
"""Seconds, beside the grace to save, after which a worker that must leave counts as hung.

The 30 s after which the cluster ends an agent that has not answered, and as much
again for the cluster to do so."""
_COMING = frozenset({WorkerState.LAUNCHING, WorkerState.READY, WorkerState.LOST})


def wants_nodes(state: State, run: Run) -> bool:
    """True if the run needs nodes now: no hold, no live attempt, no back-off."""
    return not state.fleet.hold and wants_when_released(state, run)


def wants_when_released(state: State, run: Run) -> bool:
    """True if the run would need nodes without the global hold."""
    if run.state in TERMINAL_RUN_STATES or run.state is RunState.HELD:
        return False
    if live_attempt(state, run) is not None:
        return False
    return awaits_attempt(run.decision)


def kept(state: State, run: Run) -> list[Worker]:
    """Workers that the run holds or is getting."""
    return [w for w in state.workers_of(run.id) if w.state in _COMING]


def snapshot(
    state: State, now: dt.datetime, extra: Sequence[Run] = (), *, released: bool = False
) -> Snapshot:
    """The input of a scheduling pass.

    Args:
        state: The state of the core.
        now: The current time, UTC.
        extra: Runs outside the state, for a dry run; with any, the global hold is ignored.
        released: Ignore the global hold.
    """
    wants = wants_when_released if extra or released else wants_nodes
    wanting = [run for run in state.live_runs() if wants(state, run)]
    demands: list[Demand] = []
    holdings: list[Holding] = []
    tenants: list[tuple[Run, Sequence[Worker]]] = []
    at = ""
    try:
        for run in (*wanting, *extra):
            at = run.id
            demands.append(demand_of(state, run, now))
        for run in state.hosts():
            at = run.id
            facts = facts_of(state, run)
            if facts.workers:
                tenants.append((run, facts.workers))
                holdings += _all_held(state, run, facts, now)
    except Exception as error:
        raise PassFailedError(at, error) from error
    return Snapshot(
        table=state.node_table(now),
        holdings=holdings,
        demands=[demand for demand in demands if demand.nodes > 0 or demand.unwanted],
        quotas=list(state.queues.values()),
        usage=usage_history.usage_by_project(state, now, tenants),
        spares=spare_pool(state, now),
        grace_seconds=time_limits.longest_grace(preempted(state)),
    )


def _all_held(state: State, run: Run, facts: RunFacts, now: dt.datetime) -> list[Holding]:
    """The nodes that a run holds; those of workers that hang apart."""
    if facts.rests:
        return [_resting(state, run, facts, now)]
    hung = [worker for worker in facts.workers if overdue(run, worker, now)]
    there = [worker for worker in facts.workers if worker not in hung]
    found = _held(state, run, there, now)
    if hung:  # they may never end, so nobody counts on their nodes
        nodes = tuple(worker.node for worker in hung)
        found.insert(0, _holding(run, nodes, movable=False, overdue=True))
    return found


def _resting(state: State, run: Run, facts: RunFacts, now: dt.datetime) -> Holding:
    """The nodes of a run that leaves none."""
    spec, count = run.spec, len(facts.nodes)
    ends = time_limits.ends_at(run)
    within = time_limits.ends_within(run, now)
    if ends is None and (queue := state.queues.get(spec.queue)) is not None:
        if facts.history is not queue:
            facts.history, facts.usual_end = queue, usage_history.usual_end(queue, run)
        ends = facts.usual_end
        ends = ends if ends is not None and ends > now else None
    return Holding(
        run=run.id,
        need=spec.resources,
        nodes=facts.nodes,
        queue=spec.queue,
        project=spec.project,
        priority=spec.priority,
        ends_at=ends,
        ends_within=within,
        lost_gpu_seconds=_lost(count * accounted_gpus(spec.resources), facts.since, now),
        surplus=facts.surplus,
        wants=_wants(state, run, count, now),
        pack=spec.placement.pack,
        avoid=run.avoid,
        movable=run.state is not RunState.HELD,
        safe_until=elasticity.safe_until(facts.attempt),
    )


def preempted(state: State) -> Iterator[Run]:
    """Runs that save now, to leave nodes."""
    return (run for run in state.live_runs() if isinstance(run.decision, Vacate))


def anybody_wants(state: State, now: dt.datetime) -> bool:
    """True if a pass could give nodes to a run: a cheap check before an expensive snapshot.

    Most events that request a pass find every gang complete (a rank died, a node came back).
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
    """The nodes that the run still needs; `nodes` is 0 if its gang is complete."""
    if state.runs.get(run.id) is not run:
        return _demand(state, run, now)  # of a dry run
    facts = facts_of(state, run)
    if facts.demand is not None:
        return facts.demand
    demand = _demand(state, run, now)
    if time_limits.ends_at(run) is None:
        facts.demand = demand
    return demand


def _demand(state: State, run: Run, now: dt.datetime) -> Demand:
    need, own = run.spec.resources, kept(state, run)
    looping = recovery.restarts_in_vain(run)
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
        recovers=_recovers(run),
        may_preempt=looping < recovery.PATIENCE,
        keeps=tuple(worker.node for worker in own),
        unwanted=_unwanted(run, own),
        avoid=run.avoid,
        ends_within=time_limits.ends_within(run, now),
        claim=run.claim,
        waits_since=None if run.decision is None else run.decision.restart.failed_at,
    )


def _recovers(run: Run) -> bool:
    """True if the run may have its nodes ahead of others.

    A preempted run must not return ahead of the run that it was preempted for.
    """
    gave = isinstance(run.decision, Vacate) and bool(run.decision.nodes)
    return run.attempt > 0 and not gave and recovery.restarts_in_vain(run) < recovery.PATIENCE


def _unwanted(run: Run, own: Iterable[Worker]) -> tuple[str, ...]:
    """Nodes that the run avoids and can leave.

    An agent that is still starting on such a node stays: the run has found no other node.
    """
    if not run.avoid:
        return ()
    return tuple(w.node for w in own if w.state is WorkerState.READY and w.node in run.avoid)


def _held(state: State, run: Run, workers: list[Worker], now: dt.datetime) -> list[Holding]:
    """The nodes that a run holds, separate from those it is about to leave."""
    going = leaving(run, workers)
    gone = {
        worker.id for worker in going
    }  # by worker, as a new one may start on a node that the run leaves
    staying = [worker for worker in workers if worker.id not in gone]
    missing = _missing(run, len(staying))
    found = []
    if going:  # these nodes are free soon, so a pass may count on them
        nodes = tuple(worker.node for worker in going)
        counted = -min(missing, len(nodes))
        late = min((at for each in going if (at := overdue_at(run, each))), default=None)
        found.append(
            _holding(
                run,
                nodes,
                leaving=True,
                movable=False,
                ends_at=now,
                overdue_at=late,
                missing=counted,
            )
        )
    if staying:
        found.append(
            _holding(
                run,
                tuple(worker.node for worker in staying),
                ends_at=usage_history.expected_end(state, run, now),
                ends_within=time_limits.ends_within(run, now),
                lost_gpu_seconds=lost_gpu_seconds(state, run, len(staying), now),
                surplus=surplus_of(state, run, staying),
                wants=_wants(state, run, len(staying), now),
                safe_until=elasticity.safe_until(live_attempt(state, run)),
                movable=run.state is not RunState.HELD and run.decision is None,
                missing=missing,
            )
        )
    return found


def _missing(run: Run, staying: int) -> int:
    """Nodes that a recovery on nodes of its own will ask for again.

    It keeps its share of the quota from the failure to the next attempt; a run that has lost all
    of its nodes asks like any other.
    """
    going_on = run.decision is not None and not isinstance(run.decision, Finish)
    if not staying or not going_on or run.state is RunState.HELD or not _recovers(run):
        return 0
    return max(0, run.spec.resources.min_nodes - staying)


def leaving(run: Run, workers: Iterable[Worker]) -> list[Worker]:
    """Workers whose nodes a run is about to leave.

    On hold, a run keeps the nodes that it must vacate until the release. Once the decision to
    vacate is carried out, its workers are stopping; workers that it has there later are new.
    """
    decision = run.decision
    left: frozenset[str] = frozenset()
    if isinstance(decision, Vacate) and run.state is not RunState.HELD:
        left = frozenset() if isinstance(decision.stage, CarriedOut) else frozenset(decision.nodes)
    return [w for w in workers if w.state is WorkerState.STOPPING or w.node in left]


def overdue_at(run: Run, worker: Worker) -> dt.datetime | None:
    """When a worker that leaves should have left long ago; None: it does not leave."""
    since = worker.stopping_at
    if since is None and isinstance(run.decision, Vacate) and leaving(run, [worker]):
        since = run.decision.restart.failed_at
    limit = time_limits.grace_seconds(run) + OVERDUE_SECONDS
    return None if since is None else since + dt.timedelta(seconds=limit)


def overdue(run: Run, worker: Worker, now: dt.datetime) -> bool:
    """True if a worker should have left its node long ago: its agent or its host hangs."""
    at = overdue_at(run, worker)
    return at is not None and at <= now


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
    """GPU seconds lost if the run stops now: work since its last save, and the restart.

    This assumes that the run cannot save. Start-up counts as work, since otherwise a run that is
    still loading would be preempted again and again. 0 without a live attempt.
    """
    since = saved_at(state, run, live_attempt(state, run))
    return _lost(nodes * accounted_gpus(run.spec.resources), since, now)


def _lost(gpus: int, since: dt.datetime | None, now: dt.datetime) -> float:
    if since is None:
        return 0.0
    return gpus * (max(0.0, (now - since).total_seconds()) + RESTART_SECONDS)


def _wants(state: State, run: Run, nodes: int, now: dt.datetime) -> int:
    """Further nodes for a run with a live attempt: standbys, and growth once it trains well."""
    attempt = live_attempt(state, run)
    quiet = run.decision is None and run.state is not RunState.HELD and not state.fleet.hold
    paused = run.due(Timer.STANDBY) is not None  # the last standby failed early
    if attempt is None or not quiet or paused or attempt.state is AttemptState.STOPPING:
        return 0
    standbys = run.spec.placement.standbys
    if len(attempt.seats) < run.spec.resources.max_nodes and elasticity.may_grow(attempt, now):
        return max(0, run.spec.resources.max_nodes + standbys - nodes)
    return max(0, len(attempt.seats) + standbys - nodes)


def spare_pool(state: State, now: dt.datetime) -> int:
    """Number of idle nodes reserved for recoveries.

    `auto`: by the failures of this cluster (:mod:`orchestrator.core.policy.spare_pool`).
    """
    if state.fleet.spares != "auto":
        return state.fleet.spares
    return spare_pools.sized(state.nodes.values(), now).nodes
