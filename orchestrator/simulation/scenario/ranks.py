"""The workers and ranks of a simulated gang, and the reports that all of them send alike."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from babysit.wire import Tier
from jobs.events import RankStack
from jobs.shards import Shards
from orchestrator.core.messages.instructions import BroadcastCommand

_STACKS = 9
"""Ranks with generated stacks: enough to tell the differing one from the others."""


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
        """The first rank of a worker.

        Raises:
            ValueError: The worker does not belong to the gang.
        """
        return self._ranks[self.workers.index(worker)][0]

    def worker_of(self, rank: int) -> str:
        """The worker of a rank.

        Raises:
            StopIteration: No worker has the rank.
        """
        return next(
            worker for worker, ranks in zip(self.workers, self._ranks, strict=True) if rank in ranks
        )

    def shards(self, attempt: int, step: int, tier: Tier, path: str = "") -> Shards:
        """The shards that all ranks wrote of one checkpoint.

        The values are not validated, since the simulation itself generates them.
        """
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
        """The columns that are equal in every save of the attempt."""
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
        """The stacks of some ranks in a hang; one of them differs from the others."""
        return tuple(
            _stack(ranks[0], odd=place == 1) for place, ranks in enumerate(self._ranks[:_STACKS])
        )


def _stack(rank: int, *, odd: bool) -> RankStack:
    """The odd one is stopped: a hang that can be proven, as those of the failure models are."""
    frame = "_next_batch (loader.py:88)" if odd else "all_reduce (distributed_c10d.py:2501)"
    state = "T" if odd else "S"
    return RankStack(rank=rank, process_state=state, frames=(frame, "main (train.py:10)"))
