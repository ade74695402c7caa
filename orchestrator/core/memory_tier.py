"""Checkpoints in the memory of nodes: known from what agents find when an attempt has stopped."""

from __future__ import annotations

from babysit.wire import Tier
from jobs.events import AttemptStopped, ShardReport
from orchestrator.core.entities import Checkpoint
from orchestrator.core.states import Trust
from orchestrator.core.turn import Turn


def take_inventory(turn: Turn, event: AttemptStopped) -> None:
    """Record what a worker still has. That is all it has: shards it does not name are gone."""
    for shard in event.memory_shards:
        _record(turn, event, shard)
    kept = {(shard.attempt, shard.step, shard.rank) for shard in event.memory_shards}
    for checkpoint in _in_memory_of(turn, event.run, event.worker):
        here = {rank for rank, home in checkpoint.homes.items() if home == event.worker}
        if any((checkpoint.attempt, checkpoint.step, rank) not in kept for rank in here):
            _drop(turn, checkpoint, f"no longer in the memory of {event.worker}")


def drop_with(turn: Turn, run_id: str, worker: str) -> None:
    """A worker is gone, and its memory with it."""
    for checkpoint in _in_memory_of(turn, run_id, worker):
        _drop(turn, checkpoint, f"{worker}, which held a shard, is gone")


def _in_memory_of(turn: Turn, run_id: str, worker: str) -> list[Checkpoint]:
    return [
        c
        for c in turn.state.checkpoints_of(run_id)
        if c.tier is Tier.MEMORY and c.deleted_at is None and worker in c.homes.values()
    ]


def _drop(turn: Turn, checkpoint: Checkpoint, why: str) -> None:
    turn.change_checkpoint(checkpoint.id, deleted_at=turn.now, reason=why)


def _record(turn: Turn, event: AttemptStopped, shard: ShardReport) -> None:
    key = f"{event.run}/{shard.attempt}/{shard.tier}/{shard.step}"
    known = turn.state.checkpoints.get(key)
    if known is None:
        if shard.attempt < event.attempt:
            return  # recorded when its own attempt stopped, and given up since
        known = Checkpoint(
            id=key,
            run=event.run,
            attempt=shard.attempt,
            step=shard.step,
            tier=shard.tier,
            world_size=shard.world_size,
            path="",
            batch=shard.batch,
            created_at=turn.now,
        )
        turn.put(known)
    if known.deleted_at is not None:
        return
    ranks = known.ranks | {shard.rank}
    whole = len(ranks) == known.world_size and known.trust is Trust.WRITING
    turn.state.record_shard(key, shard)
    turn.change_checkpoint(
        key,
        ranks=ranks,
        homes={**known.homes, shard.rank: event.worker},
        trust=Trust.COMPLETE if whole else known.trust,
        bytes=known.bytes
        + (sum(f.bytes for f in shard.files) if shard.rank not in known.ranks else 0),
    )
