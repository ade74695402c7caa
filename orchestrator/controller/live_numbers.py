"""The newest numbers of each live run, and the step times of each node, for metrics.

The problem: a scrape of a thousand runs must not read a thousand loss curves from the database.

The design: every report passes the controller once; what a scrape shows is picked up there. A run
shows the numbers of one rank, the lowest that has a loss (before there is one, the lowest that
reports), as its loss curve does. Its step times are counted by node, over all ranks on it.

Limits: it is all in memory. A new leader has the newest step and loss from the stored samples;
tokens and step times begin at 0 with it, as counters of Prometheus may.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from jobs.events import RankSamples, Report

STEP_BOUNDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds of the step times, in seconds: from a small model on one node to a stalled one.

Few, since each is a line for every node in every scrape.
"""


class StepTimes:
    """Step times of the ranks of one run on one node.

    Attributes:
        counts: How many steps took up to each of `STEP_BOUNDS`, and longer; not accumulated.
        sum: Seconds of all of them.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        # A scrape reads the memory of all of them at once, which a list does not have.
        self.counts = array("q", bytes(8 * (len(STEP_BOUNDS) + 1)))
        self.sum = 0.0

    def take(self, seconds: Iterable[float]) -> None:
        """Count steps; a time of 0 is of a step whose start is not known, and does not count."""
        for each in seconds:
            if each > 0:
                self.counts[bisect_left(STEP_BOUNDS, each)] += 1
                self.sum += each


@dataclasses.dataclass(slots=True)
class Newest:
    """The newest numbers of a run."""

    attempt: int = 0
    step: int | None = None
    """None: no sample has been seen."""
    time: float = 0.0
    """When that step ended, Unix seconds."""
    loss: float | None = None
    grad_norm: float | None = None
    tokens: float = 0.0
    """Tokens of all ranks, since this server began to lead."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """The newest value of each named metric of the attempt; finite."""
    nodes: dict[str, StepTimes] = dataclasses.field(default_factory=dict)
    """By node: step times since this server began to lead; all nodes that the run has had."""
    _voice: tuple[bool, int] = (True, -1)
    """Of the rank that speaks: whether it has no loss, and its number; lower ones are preferred."""
    _metrics_rank: int | None = None

    def take(self, attempt: int, ranks: Sequence[RankSamples]) -> None:
        """Take the samples of a report; those of an attempt before the newest are ignored."""
        if attempt < self.attempt:
            return
        if attempt > self.attempt or self.step is None:
            self.attempt, self._voice, self._metrics_rank = attempt, (True, 1 << 62), None
        for each in ranks:
            if each.step:
                self._hear(each)

    def _hear(self, samples: RankSamples) -> None:
        silent = all(loss is None or math.isnan(loss) for loss in samples.loss)
        if samples.rank == self._voice[1]:
            silent = silent and self._voice[0]  # a loss that has become NaN is a loss
        if (silent, samples.rank) <= self._voice:
            self._voice = (silent, samples.rank)
            self.step, self.time = samples.step[-1], samples.time[-1]
            self.loss = samples.loss[-1]
            norm = samples.grad_norm[-1]
            self.grad_norm = norm if norm > 0 else None  # 0: not reported
        if samples.metrics and (self._metrics_rank is None or samples.rank <= self._metrics_rank):
            self._metrics_rank = samples.rank
            for name, values in samples.metrics.items():
                value = next((v for v in reversed(values) if math.isfinite(v)), None)
                if value is not None:
                    self.metrics[name] = value


class LiveNumbers:
    """The newest numbers of each live run.

    Attributes:
        runs: By run id; a run that has reported nothing is absent.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Newest] = {}

    def take(self, run: str, node: str, report: Report) -> None:
        """Take the samples of a report of a run's worker on a node; each report once."""
        newest = self.runs.setdefault(run, Newest())
        newest.take(report.attempt, report.samples)
        steps = newest.nodes.setdefault(node, StepTimes())
        for each in report.samples:
            newest.tokens += sum(each.tokens)
            steps.take(each.seconds)

    def rebuild(self, run: str, tail: Iterable[tuple[int, RankSamples]]) -> None:
        """Take the newest numbers from stored samples; tokens and step times are not counted."""
        newest = self.runs.setdefault(run, Newest())
        for attempt, samples in tail:
            newest.take(attempt, [samples])

    def forget(self, run: str) -> None:
        """Forget a run that is over."""
        self.runs.pop(run, None)
