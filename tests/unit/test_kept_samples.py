"""The ranks whose samples are stored."""

from __future__ import annotations

import math

from jobs.events import RankSamples
from orchestrator.controller.kept_samples import KeptSamples
from orchestrator.database.port import WorkerSamples


def told(rank: int, *losses: float) -> RankSamples:
    steps = list(range(1, len(losses) + 1))
    return RankSamples.model_construct(rank=rank, step=steps, loss=list(losses), metrics={})


def stored(kept: KeptSamples, *ranks: RankSamples) -> list[int]:
    kept.hear(1, ranks)
    return [each.rank for each in kept.of(WorkerSamples(run="r", attempt=1, ranks=ranks)).ranks]


def test_the_lowest_rank_is_stored_before_it_has_a_loss() -> None:
    """Its agent was late, and its first losses are NaN: its curve has these steps, too."""
    kept = KeptSamples()
    assert stored(kept, told(1, math.nan, 2.0)) == [1]
    assert stored(kept, told(0, math.nan, math.nan), told(2, 1.0)) == [0]
    assert stored(kept, told(1, 2.0)) == [1], "it speaks, as the lowest with a loss"
    assert stored(kept, told(0, 2.0), told(1, 2.0)) == [0]
