"""The ranks of a run whose samples are stored: the one that speaks for it, and others when needed.

The problem: every rank reports every step, the monitors look at all of them, and the curves show
one. To store all of them fills the database with numbers that nobody reads.

The design: stored are the samples of the lowest rank, of the lowest rank with a loss, and of the
lowest rank with named metrics, as the curves are read (`database.sample_rows.speaker`). Mostly
they are one rank; if not, the lowest may have a loss later, and its curve is then whole. Around a
finding all ranks are stored, as evidence.

Limits: ranks that report before the speaker of an attempt does leave a few samples of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from jobs.events import RankSamples
from orchestrator.database.port import WorkerSamples

WITNESS_STEPS = 32
"""Steps after a finding of which the samples of all ranks are stored."""


class KeptSamples:
    """Chooses the samples of one run that are stored.

    Hears first of all those that the database will take, which refuses samples of attempts that it
    does not know.
    """

    def __init__(self) -> None:
        self._attempt = 0
        self._lowest: int | None = None
        self._with_loss: int | None = None
        self._with_metrics: int | None = None
        self._whole_until = -1
        """Steps up to this one are stored of all ranks."""

    def hear(self, attempt: int, ranks: Iterable[RankSamples]) -> None:
        """Learn from reported samples who speaks in an attempt; older attempts are ignored."""
        if attempt < self._attempt:
            return
        if attempt > self._attempt:
            self._attempt, self._whole_until = attempt, -1
            self._lowest = self._with_loss = self._with_metrics = None
        for each in ranks:
            self._lowest = _least(self._lowest, each.rank)
            if not all(loss is None or math.isnan(loss) for loss in each.loss):
                self._with_loss = _least(self._with_loss, each.rank)
            if each.metrics:
                self._with_metrics = _least(self._with_metrics, each.rank)

    def witness(self, step: int) -> None:
        """A monitor has found something at a step: all ranks tell of it."""
        self._whole_until = max(self._whole_until, step + WITNESS_STEPS)

    def of(self, samples: WorkerSamples) -> WorkerSamples:
        """The part of reported samples that is stored."""
        if samples.attempt != self._attempt:
            return samples
        voices = {self._lowest, self._with_loss, self._with_metrics}
        kept = [
            each
            for each in samples.ranks
            if each.rank in voices or (each.step and each.step[0] <= self._whole_until)
        ]
        return dataclasses.replace(samples, ranks=kept)


def _least(known: int | None, rank: int) -> int:
    return rank if known is None else min(known, rank)
