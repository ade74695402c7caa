"""Counters and histograms, derived from the run database, so that a restart loses none.

A counter must never go back. What is over is counted once and remembered; what is live is counted
anew each time, up to what can no longer be booked otherwise.
"""

from __future__ import annotations

import bisect
import dataclasses
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Sequence

from monitors.failures import Cause
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.views.phases import PHASES
from orchestrator.server.context import Context

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Upper bounds of the histograms, in seconds: from a kill seen by pidfd to a restart by hand."""
_TRAINING = frozenset({Bucket.PRODUCTIVE, Bucket.LOST})


@dataclasses.dataclass
class Histogram:
    """Durations by upper bound."""

    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def add(self, other: Histogram) -> None:
        """Count all of another."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many are no longer), as Prometheus wants them."""
        titles = [*map(str, BOUNDS), "+Inf"]
        return list(zip(titles, map(float, itertools.accumulate(self.counts)), strict=True))


def _histograms() -> dict[str, Histogram]:
    return {phase: Histogram() for phase in PHASES}


@dataclasses.dataclass
class Tally:
    """Counts over runs."""

    restarts: Counter[str] = dataclasses.field(default_factory=Counter)
    """By cause."""
    detection: Histogram = dataclasses.field(default_factory=Histogram)
    recovery: dict[str, Histogram] = dataclasses.field(default_factory=_histograms)
    """By phase."""
    gpu_seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(Bucket, 0.0)
    )
    """By bucket of the time ledger."""

    def restart(self, restart: Restart) -> None:
        """Count a restart; phases that it has not been through are counted when it has."""
        self.restarts[restart.cause.value] += 1
        seconds = restart.seconds
        for phase, took in seconds.items():
            self.recovery[phase].observe(took)
        if restart.cause is not Cause.OPERATOR and "detect" in seconds:  # people need no detecting
            self.detection.observe(seconds["detect"])

    def time(self, run: Run, until: dt.datetime) -> None:
        """Count a run's GPU time; an elastic one as if it always had its fewest nodes."""
        need = run.spec.resources
        gpus = need.min_nodes * need.gpus_per_node
        for bucket, seconds in time_ledger.totals(run.ledger, until).items():
            self.gpu_seconds[bucket] += seconds * gpus

    def add(self, other: Tally) -> None:
        """Count all of another."""
        self.restarts += other.restarts
        self.detection.add(other.detection)
        for phase, histogram in other.recovery.items():
            self.recovery[phase].add(histogram)
        for bucket, seconds in other.gpu_seconds.items():
            self.gpu_seconds[bucket] += seconds


class Tallies:
    """Counts over all runs, scrape after scrape."""

    def __init__(self) -> None:
        self._over = Tally()
        self._seen: set[str] = set()
        self._shown: dict[str, float] = {}
        """GPU seconds as last told: a save that is booked late takes its time from `productive`."""

    async def count(self, here: Context, runs: Sequence[Run]) -> Tally:
        """Everything so far; never less than the last time."""
        total = Tally()
        for run in runs:
            if run.id in self._seen:
                continue
            one = await _of_run(here, run)
            if run.state in TERMINAL_RUN_STATES:
                self._over.add(one)
                self._seen.add(run.id)
            else:
                total.add(one)
        total.add(self._over)
        for bucket, seconds in total.gpu_seconds.items():
            self._shown[bucket] = max(seconds, self._shown.get(bucket, 0.0))
        total.gpu_seconds = dict(self._shown)
        return total


async def _of_run(here: Context, run: Run) -> Tally:
    tally = Tally()
    if run.attempt > 1:
        for attempt in await here.store.attempts(run.id):
            if attempt.restart is not None:
                tally.restart(attempt.restart)
    if run.spec.resources.gpus_per_node:
        tally.time(run, await _settled(here, run))
    return tally


async def _settled(here: Context, run: Run) -> dt.datetime:
    """Until when a run's time is as booked. What follows the newest step may turn out a stall."""
    if run.ended_at is not None:
        return run.ended_at
    if run.ledger.bucket in _TRAINING:
        tail = await here.store.sample_tail(run.id, count=1)
        if tail and tail[-1][1].time:
            return dt.datetime.fromtimestamp(tail[-1][1].time[-1], dt.UTC)
    return here.clock.now()
