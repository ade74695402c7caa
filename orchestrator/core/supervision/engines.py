"""Runs whose processes another engine starts and restarts, such as those of Ray Train.

The rank is the driver of that engine, and reports for processes that babysit did not start. Two
supervisors that restart the same processes end each other's work. So babysit only watches: its
monitors observe (:mod:`.findings`), a failure is an incident that the engine mends, and checkpoints
are listed, never loaded or deleted. Where the driver dies, everything of the engine dies with it,
and babysit starts the driver again; where the driver gives up, the run has failed
(:func:`orchestrator.core.policy.exits.by_engine`).

Limits: how far the engine goes back is known from the first step after its restart, so the ledger
books the time until then as starting.
"""

from __future__ import annotations

from babysit.wire import Tier
from jobs.engine_events import EngineFailed, EngineNamed, EngineResumed, EngineSaved
from jobs.shards import ShardReport, Shards
from monitors.exits import root_cause
from monitors.types import Severity
from orchestrator.core.checkpoints import memory_tier
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import RUNNABLE_ATTEMPT_STATES, IncidentState, RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.turn import Turn


def on_named(turn: Turn, event: EngineNamed) -> None:
    """From now on this engine alone restarts the processes of the run."""
    if turn.run(event.run).engine != event.engine:
        turn.change_run(event.run, engine=event.engine)
    turn.record(event.run, f"{event.engine} restarts the processes of the run: babysit watches")


def on_failed(turn: Turn, event: EngineFailed) -> None:
    """Processes of the engine have failed: open an incident, and restart nothing.

    The next step that no attempt had reached is an event, so that the incident ends with it.
    """
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    if attempt.state not in RUNNABLE_ATTEMPT_STATES or not event.failures:
        turn.record(run.id, f"processes of {event.engine} failed while the attempt is stopped")
        return
    _resolve(turn, run.id, f"{event.engine}'s processes failed again before a new step")
    rank, _, failure = root_cause([(each.rank, 0.0, each.failure) for each in event.failures])
    node = next(each.node for each in event.failures if each.rank == rank)
    who = f"rank {rank} of {event.engine}"
    step = max(event.step, run.best_step)
    others = len(event.failures) - 1
    more = f" ({others} more with it)" if others else ""
    reason = f"{who} failed after step {step}: {failure.reason}{more}"
    turn.open_incident(
        run,
        kind=failure.failure_class,
        severity=Severity.WARNING,
        reason=reason,
        subject=f"{who} on {node}" if node else who,
        remedy=Remedy.ENGINE,
        state=IncidentState.MITIGATING,
        evidence={
            "log": list(failure.evidence),
            "signature": failure.signature,
            "engine": event.engine,
            "step": step,
        },
    )
    turn.change_attempt(run.id, milestone=min(attempt.milestone, step + 1))
    book = time_ledger.switch(run.ledger, Bucket.STARTING, min(event.at, turn.now))
    turn.change_run(run.id, engine=event.engine, ledger=book)
    _explain(turn, run.id, f"{reason}; {event.engine} restarts it")


def on_resumed(turn: Turn, event: EngineResumed) -> None:
    """The engine's processes train again: steps that were reached before are lost work."""
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    if attempt.state not in RUNNABLE_ATTEMPT_STATES or run.ledger.bucket is not Bucket.STARTING:
        turn.record(run.id, f"{event.engine} trains at step {event.step}")
        return
    again = event.step <= run.best_step
    bucket = Bucket.LOST if again else Bucket.PRODUCTIVE
    book = time_ledger.switch(run.ledger, bucket, min(event.at, turn.now))
    turn.change_run(run.id, ledger=book)
    if again:
        what = f"computing steps {event.step} to {run.best_step} again"
        _explain(turn, run.id, f"{what}, after {event.engine} restarted its processes")


def on_step(turn: Turn, run_id: str, step: int) -> None:
    """A step has ended: failures of the engine after an earlier one are over."""
    attempt = turn.state.attempts[run_id]
    if _resolve(turn, run_id, f"step {step} has ended", before=step):
        _explain(turn, run_id, f"training, attempt {attempt.number}; its engine restarted it")


def on_saved(turn: Turn, event: EngineSaved) -> None:
    """The engine has a checkpoint: list it, and note which of its earlier ones are gone.

    Its bytes are never read back: it is complete by the word of the engine, and stays so.
    """
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    for old in turn.state.checkpoints_of(run.id):
        if old.keeper == event.engine and old.step in event.gone and old.deleted_at is None:
            why = f"deleted by {event.engine}"
            turn.change_checkpoint(old.id, deleted_at=turn.now, removed_at=turn.now, reason=why)
    report = ShardReport(
        attempt=attempt.number,
        step=event.step,
        rank=0,
        world_size=1,
        tier=Tier.DIRECTORY,
        path=event.path,
        batch=0,
        files=(),
        run=run.id,
    )
    key = f"{run.id}/{attempt.number}/{Tier.DIRECTORY}/{event.step}"
    known = turn.state.checkpoints.get(key)
    if known is None:
        shards = Shards.of(event.worker, report)
        known = memory_tier.new_checkpoint(turn, key, run.id, shards, path=event.path)
        known, _ = memory_tier.add_shards(turn, known, shards)
    turn.change_checkpoint(
        known.id,
        keeper=event.engine,
        path=event.path,
        bytes=event.bytes,
        reason=f"kept by {event.engine}",
        deleted_at=None,
        removed_at=None,
    )
    turn.record(run.id, f"{event.engine} saved step {event.step}: {event.bytes} bytes")


def _resolve(turn: Turn, run_id: str, how: str, before: int | None = None) -> bool:
    """End the incidents of the engine's failures; with `before`, of those after earlier steps."""
    found = [
        incident
        for incident in turn.state.incidents_of(run_id)
        if _is_open(incident) and (before is None or incident.evidence["step"] < before)
    ]
    for incident in found:
        turn.resolve_incident(incident.id, how)
    return bool(found)


def _is_open(incident: Incident) -> bool:
    is_of_engine = incident.remedy is Remedy.ENGINE
    return is_of_engine and incident.state is not IncidentState.RESOLVED


def _explain(turn: Turn, run_id: str, reason: str) -> None:
    """Say why the run is as it is; a hold keeps its own reason."""
    if turn.run(run_id).state is not RunState.HELD:
        turn.change_run(run_id, reason=reason)
