"""Stored samples as they were reported, for those who judge the monitors again.

The problem: curves are thinned, and show one rank. A monitor that is run again needs every sample
that is stored, with all columns, of every rank that is stored.

The design: a list of what is stored of each rank and attempt, and pages of one rank's samples. A
reader keeps as many pages as there are ranks, however long the run was.

Limits: the samples of most ranks are not stored (`orchestrator.controller.kept_samples`). A rank
without a loss is stored as one whose losses are NaN: see `SamplePart.losses`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jobs.events import RankSamples

PAGE_SAMPLES = 4096
"""Samples of a page, about; a page ends with a chunk."""


class SamplePart(NamedTuple):
    """The stored samples of one rank in one attempt, in figures."""

    attempt: int
    rank: int
    first_step: int
    last_step: int
    samples: int
    losses: int
    """Samples with a finite loss. 0: the rank has no loss, or was lost from its first report."""


class SampleRecords(Protocol):
    """Reads samples as they were reported; a part of the run database's port."""

    async def sample_total(self, run: str, attempt: int | None = None) -> int:
        """Number of stored samples, over all ranks."""

    async def sample_parts(self, run: str) -> list[SamplePart]:
        """The parts that are stored of a run, by attempt and rank."""

    async def sample_page(
        self, run: str, attempt: int, rank: int, *, after: int = -1
    ) -> RankSamples:
        """Samples of a rank after a step, in order: about `PAGE_SAMPLES`; empty: there are no more.

        Without metrics.
        """
