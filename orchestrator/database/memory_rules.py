"""The constraints and guards of the database, for :class:`.memory_store.MemoryStore`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.shards import ShardReport
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Incident,
    Queue,
    Run,
    Worker,
)
from orchestrator.core.model.states import (
    ATTEMPT_MOVES,
    INCIDENT_MOVES,
    LIVE_ATTEMPT_STATES,
    RUN_MOVES,
    TRUST_MOVES,
    WORKER_MOVES,
    Trust,
)
from orchestrator.database.commit import unknown_worker
from orchestrator.database.port import Batch
from orchestrator.errors import InvariantError

Entities = Mapping[type, Mapping[str, Any]]
"""Entities by class and key."""
Shards = Mapping[str, Mapping[int, ShardReport]]
"""Shards by checkpoint and rank."""

_TERMINAL: dict[type, tuple[str, frozenset[Any]]] = {
    entity: (field, frozenset(state for state, onward in moves.items() if not onward))
    for entity, field, moves in (
        (Run, "state", RUN_MOVES),
        (Attempt, "state", ATTEMPT_MOVES),
        (Worker, "state", WORKER_MOVES),
        (Incident, "state", INCIDENT_MOVES),
        (Checkpoint, "trust", TRUST_MOVES),
    )
}
_NEEDS_SHARDS = frozenset({Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD})


def key_of(entity: Entity) -> str:
    """The key under which an entity is stored."""
    return entity.name if isinstance(entity, Queue) else entity.id


def newest_attempt(run: str, attempts: Iterable[Attempt]) -> int:
    """Number of a run's newest attempt; 0: none."""
    return max((attempt.number for attempt in attempts if attempt.run == run), default=0)


def check(batch: Batch, entities: Entities, shards: Shards) -> None:
    """Check a batch as the database's constraints would.

    Raises:
        InvariantError: The database would reject the batch.
    """
    workers = entities.get(Worker, {}).keys() | {
        each.id for each in batch.entities if isinstance(each, Worker)
    }
    if not workers >= batch.sequences.keys():
        raise unknown_worker(batch.sequences)
    if any(instruction.kind == "record" for instruction in batch.outbox):
        raise InvariantError("outbox: a Record has nothing to carry out")
    runs = entities.get(Run, {}).keys() | {e.id for e in batch.entities if isinstance(e, Run)}
    for entity in batch.entities:
        run = getattr(entity, "run", "")  # empty: a node, or an incident about one
        if run and run not in runs:
            raise InvariantError(f"{key_of(entity)}: its run {run} is not stored")
        _check_final(entity, entities.get(type(entity), {}).get(key_of(entity)))
        if isinstance(entity, Checkpoint):
            _check_shards(entity, batch, shards.get(entity.id, {}))
    changed = [each for each in batch.entities if isinstance(each, Attempt)]
    _check_attempts(changed, entities.get(Attempt, {}))


def _check_final(entity: Entity, old: Any) -> None:
    field, terminal = _TERMINAL.get(type(entity), ("", frozenset()))
    if old is None or not field:
        return
    if getattr(old, field) in terminal and getattr(entity, field) is not getattr(old, field):
        raise InvariantError(
            f"{type(entity).__name__} {key_of(entity)}: a terminal {field} is final"
        )
    if isinstance(entity, Run) and entity.attempt < old.attempt:
        raise InvariantError(f"run {entity.id}: attempt numbers only grow")


def _check_shards(checkpoint: Checkpoint, batch: Batch, stored: Mapping[int, ShardReport]) -> None:
    if checkpoint.deleted_at is not None:
        return  # retention may have removed the shards
    recorded = set(stored) | {
        record.shard.rank for record in batch.shards if record.checkpoint == checkpoint.id
    }
    if checkpoint.trust in _NEEDS_SHARDS and not recorded >= set(range(checkpoint.world_size)):
        raise InvariantError(f"checkpoint {checkpoint.id}: shards are missing")


def _check_attempts(changed: Sequence[Attempt], stored: Mapping[str, Attempt]) -> None:
    for each in changed:
        if each.id not in stored and each.number < newest_attempt(each.run, stored.values()):
            raise InvariantError(f"attempt {each.id}: numbers only grow")
    merged = {**stored, **{each.id: each for each in changed}}
    alive = [each.run for each in merged.values() if each.state in LIVE_ATTEMPT_STATES]
    for run in {each.run for each in changed}:
        if alive.count(run) > 1:
            raise InvariantError(f"run {run}: at most one attempt may be alive")
