"""Checkpoints in the memory of nodes: known from what agents find when an attempt has stopped."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from babysit.wire import Tier
from jobs.shards import Shards
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import Trust
from orchestrator.core.turn import Turn


def take_inventory(
    turn: Turn, run_id: str, attempt: int, workers: Collection[str], memory: Sequence[Shards]
) -> None:
    """Record the memory checkpoints that workers still hold when `attempt` has stopped.

    The report is complete: shards that a worker does not name are gone, and a checkpoint that
    misses one is deleted. Shards of an earlier attempt count only if its own stop had recorded
    them: one that was deleted since must not come back to life.

    Args:
        turn: The turn.
        run_id: The run.
        attempt: The attempt that stopped.
        workers: Whose reports these are.
        memory: All that they hold, by checkpoint.
    """
    for shards in memory:
        _record(turn, run_id, attempt, shards)
    kept = {
        (shards.attempt, shards.step, rank, worker)
        for shards in memory
        for rank, worker in zip(shards.ranks, shards.workers, strict=True)
    }
    for checkpoint in _in_memory_of(turn, run_id, workers):
        missing = next(
            (
                home
                for rank, home in checkpoint.homes.items()
                if home in workers and (checkpoint.attempt, checkpoint.step, rank, home) not in kept
            ),
            None,
        )
        if missing is not None:
            _drop(turn, checkpoint, f"no longer in the memory of {missing}")


def drop_with(turn: Turn, run_id: str, worker: str) -> None:
    """A worker is gone, and its memory with it."""
    for checkpoint in _in_memory_of(turn, run_id, {worker}):
        _drop(turn, checkpoint, f"{worker}, which held a shard, is gone")


def _in_memory_of(turn: Turn, run_id: str, workers: Collection[str]) -> list[Checkpoint]:
    return [
        c
        for c in turn.state.checkpoints_of(run_id)
        if c.tier is Tier.MEMORY
        and c.deleted_at is None
        and any(home in workers for home in c.homes.values())
    ]


def _drop(turn: Turn, checkpoint: Checkpoint, why: str) -> None:
    turn.change_checkpoint(checkpoint.id, deleted_at=turn.now, removed_at=turn.now, reason=why)


def _record(turn: Turn, run_id: str, attempt: int, shards: Shards) -> None:
    key = f"{run_id}/{shards.attempt}/{shards.tier}/{shards.step}"
    known = turn.state.checkpoints.get(key)
    if known is None:
        if shards.attempt < attempt:
            return  # recorded when its own attempt stopped, and given up since
        known = new_checkpoint(turn, key, run_id, shards, path="")
    if known.deleted_at is None:
        add_shards(turn, known, shards)


def new_checkpoint(turn: Turn, key: str, run_id: str, shards: Shards, path: str) -> Checkpoint:
    """Begin the record of a checkpoint that nobody had heard of."""
    known = Checkpoint(
        id=key,
        run=run_id,
        attempt=shards.attempt,
        step=shards.step,
        tier=shards.tier,
        world_size=shards.world_size,
        path=path,
        batch=shards.batch,
        created_at=turn.now,
    )
    turn.put(known)
    return known


def add_shards(turn: Turn, known: Checkpoint, shards: Shards) -> tuple[Checkpoint, bool]:
    """Record shards of a checkpoint that is being written.

    Returns the checkpoint, and True if it is complete by these shards (and was not before).
    """
    ranks = known.ranks.union(shards.ranks)
    whole = len(ranks) == known.world_size and known.trust is Trust.WRITING
    more = sum(shards.sizes)
    if known.ranks and not known.ranks.isdisjoint(shards.ranks):
        columns = zip(shards.ranks, shards.sizes, strict=True)
        more = sum(size for rank, size in columns if rank not in known.ranks)
    turn.state.record_shards(known.id, shards)
    changed = turn.change_checkpoint(
        known.id,
        ranks=ranks,
        homes={**known.homes, **dict(zip(shards.ranks, shards.workers, strict=True))},
        trust=Trust.COMPLETE if whole else known.trust,
        bytes=known.bytes + more,
    )
    return changed, whole
