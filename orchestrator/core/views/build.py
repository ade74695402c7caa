"""Entities as the models of :mod:`orchestrator.core.views.models`. Pure."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from monitors.failures import Cause, FailureClass
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Incident,
    Node,
    Queue,
    Run,
    Suspicion,
    Worker,
)
from orchestrator.core.model.states import (
    TERMINAL_RUN_STATES,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy import time_limits
from orchestrator.core.policy.lemons import Lemon
from orchestrator.core.scheduling import Quota
from orchestrator.core.scheduling.types import accounted_gpus
from orchestrator.core.text import REFUSED
from orchestrator.core.views.models import (
    AttemptView,
    CheckpointView,
    FaultView,
    IncidentView,
    NodeCheck,
    NodeView,
    QueueView,
    RestartView,
    RunDetail,
    RunView,
    SuspectView,
    WindowView,
)
from orchestrator.core.views.phases import PHASES
from orchestrator.core.views.remedy_text import incident_remedy

_LOADABLE = frozenset({Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD})


def run_view(
    run: Run, now: dt.datetime, *, restarts: int, step: int | None = None, loss: float | None = None
) -> RunView:
    """A run in a line. `step` and `loss` are the newest sample's; without, the core's step."""
    return RunView(**_run_fields(run, now, restarts, step, loss))


def run_detail(
    run: Run,
    attempts: Sequence[Attempt],
    incidents: Sequence[Incident],
    checkpoints: Sequence[Checkpoint],
    *,
    now: dt.datetime,
    newest: tuple[int, float | None] | None = None,
) -> RunDetail:
    """A run in full, without metrics. `newest`: step and loss of the newest sample."""
    step, loss = newest or (None, None)
    restarts = [attempt.restart for attempt in attempts if attempt.restart is not None]
    return RunDetail(
        **_run_fields(run, now, len(restarts), step, loss),
        restarts=[restart_view(restart) for restart in restarts],
        incidents=[incident_view(incident) for incident in incidents],
        checkpoint=newest_checkpoint(checkpoints, now),
        suspect=_suspect_view(run, attempts[-1].suspect) if attempts else None,
        seconds=time_ledger.totals(run.ledger, run.ended_at or now),
        node_names=[seat.node for seat in attempts[-1].seats] if attempts else [],
        skip_batches=list(run.skip_batches),
        avoid=list(run.avoid),
        bundle=run.bundle,
        spec=run.spec,
    )


_BUILD_LOCK = "a build lock of torch extensions"
"""In the sentence of a look, as `jobs.agent.build_locks.waited_for` writes it."""


def _suspect_view(run: Run, suspect: Suspicion | None) -> SuspectView | None:
    """A silence that people should know of.

    That of a script that has never said anything is normal, unless it waits for a lock of a build.
    """
    if suspect is None or run.ended_at:
        return None
    if not is_reporting(run) and _BUILD_LOCK not in suspect.sentence:
        return None
    return SuspectView(
        since=suspect.since,
        kind="silent" if suspect.incident is None else "slow",
        evidence=suspect.sentence or suspect.finding.reason,
        limit_seconds=suspect.limit_seconds,
    )


def _run_fields(
    run: Run, now: dt.datetime, restarts: int, step: int | None, loss: float | None
) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "pending": None if run.pending is None else run.pending.value,
        "owner": run.owner,
        "project": run.spec.project,
        "queue": run.spec.queue,
        "priority": run.spec.priority.value,
        "nodes": run.spec.resources.min_nodes,
        "grace_seconds": time_limits.grace_seconds(run),
        "attempt": run.attempt,
        "step": run.best_step if step is None else step,
        "loss": loss,
        "restarts_count": restarts,
        "reports": is_reporting(run),
        "ettr": time_ledger.ettr(run.ledger, run.ended_at or now) if is_reporting(run) else None,
        "submitted_at": run.submitted_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
    }


_REQUESTS = {Remedy.ROLL_BACK: "rollback", Remedy.MOVE_AWAY: "drain"}


def _failure_class(restart: Restart) -> str:
    """The failure class; for a restart that nothing failed for, its request."""
    if restart.cause is Cause.OPERATOR and restart.failure_class is FailureClass.UNKNOWN:
        return _REQUESTS.get(restart.remedy, "restart")
    return restart.failure_class.value


def restart_view(restart: Restart) -> RestartView:
    """A restart; phases not reached yet are null."""
    seconds = restart.seconds
    return RestartView(
        attempt=restart.attempt,
        cause=restart.cause.value,
        failure_class=_failure_class(restart),
        reason=restart.reason,
        remedy=restart.remedy.value,
        node=restart.node,
        rank=restart.rank,
        incident=restart.incident,
        detected_at=restart.detected_at,
        recovered_at=restart.recovered_at,
        resumed_step=restart.resumed_step,
        lost_steps=restart.lost_steps,
        seconds={phase: seconds.get(phase) for phase in PHASES},
    )


def incident_view(incident: Incident) -> IncidentView:
    """An incident."""
    return IncidentView(
        id=incident.id,
        run=incident.run,
        attempt=incident.attempt,
        kind=incident.kind.value,
        severity=incident.severity.value,
        state=incident.state.value,
        subject=incident.subject,
        onset_step=incident.onset_step,
        remedy=incident_remedy(incident),
        reason=incident.reason,
        opened_at=incident.opened_at,
        resolved_at=incident.resolved_at,
        acknowledged_by=incident.acknowledged_by,
        silenced_until=incident.silenced_until,
        response=incident.response.value,
        remedy_at=incident.remedy_at,
        verdict=incident.verdict,
        evidence=dict(incident.evidence),
    )


def checkpoint_view(checkpoint: Checkpoint, now: dt.datetime) -> CheckpointView:
    """A checkpoint."""
    return CheckpointView(
        id=checkpoint.id,
        run=checkpoint.run,
        attempt=checkpoint.attempt,
        step=checkpoint.step,
        tier=checkpoint.tier.value,
        trust=checkpoint.trust.value,
        doubted=checkpoint.doubted,
        superseded=checkpoint.superseded,
        reason=checkpoint.reason,
        path=checkpoint.path,
        world_size=checkpoint.world_size,
        shards=len(checkpoint.ranks),
        unchecked=len(set(checkpoint.homes.values()) - checkpoint.checked_by),
        medium=checkpoint.medium,
        deleting=checkpoint.deleted_at is not None and checkpoint.removed_at is None,
        bytes=checkpoint.bytes,
        pinned=checkpoint.pinned,
        created_at=checkpoint.created_at,
        age_seconds=max(0.0, (now - checkpoint.created_at).total_seconds()),
    )


def newest_sound(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The newest sound checkpoint of the run's past; it may be doubted."""
    newest: Checkpoint | None = None
    for c in checkpoints:
        if c.deleted_at is not None or c.superseded or c.trust not in _LOADABLE:
            continue
        if newest is None or (c.step, c.created_at) > (newest.step, newest.created_at):
            newest = c
    return newest


def newest_checkpoint(checkpoints: Iterable[Checkpoint], now: dt.datetime) -> CheckpointView | None:
    """The newest sound checkpoint of the run's past, as a view; it may be doubted."""
    newest = newest_sound(checkpoints)
    return None if newest is None else checkpoint_view(newest, now)


def attempt_view(attempt: Attempt) -> AttemptView:
    """An attempt."""
    return AttemptView(
        run=attempt.run,
        number=attempt.number,
        state=attempt.state.value,
        nodes=[seat.node for seat in attempt.seats],
        ranks=[list(seat.ranks) for seat in attempt.seats],
        world_size=attempt.world_size,
        start_step=attempt.start_step,
        step=attempt.step,
        restored=attempt.restored,
        started_at=attempt.started_at,
        first_step_at=attempt.first_step_at,
        ended_at=attempt.ended_at,
        restart=None if attempt.restart is None else restart_view(attempt.restart),
        failures=[f"rank {f.rank} on {f.node}: {f.failure.reason}" for f in attempt.failures],
    )


def node_view(
    node: Node, workers: Iterable[Worker], names: dict[str, str], lemon: Lemon | None
) -> NodeView:
    """A node. `names`: run id → run name. `lemon`: as its failures show it."""
    alive = [w for w in workers if w.node == node.id and w.state is not WorkerState.ENDED]
    here = {w.run for w in alive}
    return NodeView(
        id=node.id,
        state=node.state.value,
        reason=node.reason,
        by=node.by,
        gpus=node.gpus,
        cpus=node.cpus,
        memory_bytes=node.memory,
        used_by_others=node.used_by_others,
        labels=dict(node.labels),
        runs=sorted(names.get(run, run) for run in here),
        refused=[
            f"{names.get(w.run, w.run)}: {w.reason}" for w in alive if w.reason.startswith(REFUSED)
        ],
        faults=[
            FaultView(at=f.at, run=f.run, failure_class=f.failure_class.value) for f in node.faults
        ],
        lemon_score=None if lemon is None else round(lemon.score, 4),
        maintenance=[
            WindowView(begins=w.begins, ends=w.ends, reason=w.reason, by=w.by)
            for w in node.maintenance
        ],
    )


def check_node(node: Node, workers: Iterable[Worker], now: dt.datetime) -> list[NodeCheck]:
    """Checks of a node's fitness, from the state alone. Touches nothing."""
    here = [w for w in workers if w.node == node.id]
    lost = [w.id for w in here if w.state is WorkerState.LOST]
    recent = [f for f in node.faults if now - f.at <= dt.timedelta(hours=24)]
    kinds = Counter(fault.failure_class.value for fault in recent)
    return [
        NodeCheck(
            name="in the cluster", ok=node.state is not NodeState.GONE, detail=node.state.value
        ),
        NodeCheck(
            name="takes work",
            ok=node.state is NodeState.READY,
            detail=node.reason or node.state.value,
        ),
        NodeCheck(
            name="agents in contact",
            ok=not lost,
            detail=f"lost: {', '.join(lost)}" if lost else f"{len(here)} of {len(here)}",
        ),
        NodeCheck(
            name="no fault in 24 h",
            ok=not recent,
            detail=", ".join(f"{kind} x{count}" for kind, count in kinds.items()) or "none",
        ),
    ]


def queue_views(
    queues: Iterable[Queue], runs: Iterable[Run], workers: Iterable[Worker]
) -> list[QueueView]:
    """All queues: the default one, the declared ones, and those that live runs name."""
    declared = {queue.name: queue for queue in queues}
    live = [run for run in runs if run.state not in TERMINAL_RUN_STATES]
    names = sorted({"default", *declared, *(run.spec.queue for run in live)})
    queued = Counter(run.spec.queue for run in live if run.state is RunState.QUEUED)
    total = Counter(run.spec.queue for run in live)
    of = {run.id: run.spec for run in live}
    used: Counter[str] = Counter()
    for worker in workers:
        if worker.run in of and worker.state is not WorkerState.ENDED:
            used[of[worker.run].queue] += accounted_gpus(of[worker.run].resources)
    return [
        QueueView(
            **_quota(declared.get(name) or Queue(name=name)),
            used_gpus=used[name],
            queued=queued[name],
            active=total[name] - queued[name],
        )
        for name in names
    ]


def _quota(queue: Queue) -> dict[str, Any]:
    """The fields that a person sets."""
    return {field.name: getattr(queue, field.name) for field in dataclasses.fields(Quota)}
