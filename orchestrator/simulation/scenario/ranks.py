"""Who is in a simulated gang: its workers and ranks, and what all of them write or say alike."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from babysit.wire import Tier
from jobs.events import RankStack, Shards
from orchestrator.core.messages.instructions import BroadcastCommand

_STACKS = 9
"""Ranks whose stacks are made up: enough to tell the odd one out."""


class Ranks:
    """The ranks of one attempt, by worker."""

    def __init__(self, order: BroadcastCommand, world_size: int, bytes_per_rank: int) -> None:
        self.workers, self._ranks = order.workers, order.ranks
        self.world_size, self._bytes = world_size, bytes_per_rank

    @cached_property
    def all(self) -> tuple[int, ...]:
        """Every rank, in the order of the workers."""
        return tuple(rank for ranks in self._ranks for rank in ranks)

    def first_of(self, worker: str) -> int:
        """The first rank of a worker."""
        return self._ranks[self.workers.index(worker)][0]

    def worker_of(self, rank: int) -> str:
        """Where a rank runs."""
        return next(
            worker for worker, ranks in zip(self.workers, self._ranks, strict=True) if rank in ranks
        )

    def shards(self, attempt: int, step: int, tier: Tier, path: str = "") -> Shards:
        """What all of them wrote of one checkpoint. Trusted, since it is made here."""
        return Shards.model_construct(
            **self._columns,
            attempt=attempt,
            step=step,
            world_size=self.world_size,
            tier=tier,
            path=path,
            batch=step,
        )

    @cached_property
    def _columns(self) -> dict[str, Any]:
        """What is the same in every save of the attempt."""
        seats = zip(self.workers, self._ranks, strict=True)
        zeros = (0.0,) * self.world_size
        return {
            "ranks": self.all,
            "workers": tuple(worker for worker, ranks in seats for _ in ranks),
            "sizes": (self._bytes,) * self.world_size,
            "files": ((),) * self.world_size,
            "copy_seconds": zeros,
            "write_seconds": zeros,
        }

    def stacks(self) -> tuple[RankStack, ...]:
        """What some of them do in a hang: one of them is where the others are not."""
        return tuple(
            _stack(ranks[0], odd=place == 1) for place, ranks in enumerate(self._ranks[:_STACKS])
        )


def _stack(rank: int, *, odd: bool) -> RankStack:
    frame = "_next_batch (loader.py:88)" if odd else "all_reduce (distributed_c10d.py:2501)"
    return RankStack(rank=rank, process_state="S", frames=(frame, "main (train.py:10)"))
