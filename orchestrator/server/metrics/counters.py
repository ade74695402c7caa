"""Counters and histograms over all runs, derived from the run database: a restart loses none.

The problem: a counter must never go back, must survive the server, and must not cost more with
each run that ever was.

The design: an ended run is read from the database once, in the order of ends (`ended_runs`); a live
one is counted from the state in memory, up to what can no longer be booked otherwise. A restart is
counted as it happens, phase by phase.

Limits: a run that ends with a clock that has jumped back by more than `_SLACK` is not counted until
a server begins to lead anew.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import datetime as dt
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from monitors.failures import Cause
from orchestrator.controller.live_numbers import Newest
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.views.phases import PHASES
from orchestrator.database.ended_runs import EndedRuns, Place, place_of
from orchestrator.errors import DatabaseUnavailableError
from orchestrator.server.metrics.catalogue import RECENT_RUNS

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Upper bounds of the histograms, in seconds: from a kill seen by pidfd to a restart by hand."""
_PAGE = 100
"""Ended runs read at once: each takes some 0.1 ms, in which the event loop does nothing else."""
_PATIENCE_SECONDS = 0.2
"""How long the first scrape waits for the past to be read."""
_SLACK = dt.timedelta(seconds=5)
"""Runs that end at nearly one time may be stored in another order, and clocks are set."""
_TRAINING = frozenset({Bucket.PRODUCTIVE, Bucket.LOST})


@dataclasses.dataclass
class Histogram:
    """Durations by upper bound."""

    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """Not accumulated; the last is of what is longer than all bounds."""
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


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

    states: Counter[RunState] = dataclasses.field(default_factory=Counter)
    """Runs by state."""

    def phases(self, restart: Restart, known: frozenset[str]) -> frozenset[str]:
        """Count the phases that a restart has been through beyond the known ones; all of them."""
        seconds = restart.seconds
        for phase in seconds.keys() - known:
            self.recovery[phase].observe(seconds[phase])
            # Requests of people, and of the scheduler, need no detecting.
            if phase == "detect" and restart.cause not in {Cause.OPERATOR, Cause.PREEMPTION}:
                self.detection.observe(seconds[phase])
        return frozenset(seconds)

    def time(self, booked: _Booked, until: float) -> None:
        """Count a run's GPU time up to `until`, in Unix seconds."""
        if not booked.gpus:
            return
        for bucket, seconds in booked.closed:
            self.gpu_seconds[bucket] += seconds
        self.gpu_seconds[booked.bucket] += max(0.0, until - booked.since) * booked.gpus


class _Booked(NamedTuple):
    """The GPU time of a run, as long as the run is the same."""

    run: Run
    gpus: int
    """Of an elastic run: as if it always had its fewest nodes."""
    closed: tuple[tuple[Bucket, float], ...]
    """GPU seconds by bucket."""
    bucket: Bucket
    """The open one."""
    since: float
    """When it was opened, Unix seconds."""


def _booked(known: _Booked | None, run: Run) -> _Booked:
    if known is not None and known.run is run:
        return known
    need, book = run.spec.resources, run.ledger
    gpus = need.min_nodes * need.gpus_per_node
    closed = tuple((bucket, seconds * gpus) for bucket, seconds in book.seconds.items())
    return _Booked(run, gpus, closed, book.bucket, book.since.timestamp())


class _Seen(NamedTuple):
    """The restarts of a live run that are counted."""

    newest: Restart
    phases: frozenset[str]


class Tallies:
    """Counts over all runs, scrape after scrape, of a server that leads."""

    def __init__(self, store: EndedRuns) -> None:
        self._store = store
        self._over = Tally()
        """Ended runs, and restarts of all runs."""
        self._place: Place | None = None
        """Of the ended run that was read last."""
        self._near: dict[str, dt.datetime] = {}
        """Ended runs within the slack of that place, and those whose workers are still leaving."""
        self._live: dict[str, Run] = {}
        """As of the last count: a run counts as live until the database has its end."""
        self._booked: dict[str, _Booked] = {}
        """By live run."""
        self._seen: dict[str, _Seen] = {}
        self._shown: dict[str, float] = {}
        """GPU seconds as last shown: a save booked late takes its time from `productive`."""
        self._complete = False
        """True once all that had ended when the first count began is read."""
        self._reading = asyncio.Lock()
        self._first: asyncio.Task[None] | None = None
        self.recent: deque[Run] = deque(maxlen=RECENT_RUNS)
        """Runs that ended last, the newest last."""

    async def count(
        self, state: State, newest: Mapping[str, Newest], now: dt.datetime
    ) -> Tally | None:
        """Everything so far; no counter is less than the last time. None: the past is being read.

        While the database does not answer, the past is that of the last time.
        """
        # What leaves the state during the reads has its end in the database: it is read there or
        # counts as live once more, but never both, and never neither.
        self._live |= state.runs
        attempts = dict(state.attempts)
        with contextlib.suppress(DatabaseUnavailableError):
            await self._up_to_date()
            await self._count_restarts(attempts)
        if not self._complete:
            return None
        for run in self._near.keys() & self._live.keys():
            del self._live[run]
        edge = dt.datetime.min.replace(tzinfo=dt.UTC)
        if self._place is not None:
            edge = self._place[0] - _SLACK
        near = self._near.items()
        self._near = {run: at for run, at in near if at >= edge or run in state.runs}
        return self._total(newest, now)

    def _total(self, newest: Mapping[str, Newest], now: dt.datetime) -> Tally:
        over = self._over
        total = dataclasses.replace(over, gpu_seconds={**over.gpu_seconds}, states=+over.states)
        known, moment = self._booked, now.timestamp()
        self._booked = {id_: _booked(known.get(id_), run) for id_, run in self._live.items()}
        for id_, booked in self._booked.items():
            total.states[booked.run.state] += 1
            total.time(booked, _settled(booked.run, newest.get(id_), moment))
        for bucket, seconds in total.gpu_seconds.items():
            self._shown[bucket] = max(seconds, self._shown.get(bucket, 0.0))
        total.gpu_seconds = dict(self._shown)
        return total

    # ended runs

    async def _up_to_date(self) -> None:
        """Read the runs that have ended since; at first, go on in the background if it takes long.

        Raises:
            DatabaseUnavailableError: The next call reads on from there.
        """
        if self._complete:
            await self._read()
            return
        if self._first is None:
            self._first = asyncio.create_task(self._read())
        await asyncio.wait({self._first}, timeout=_PATIENCE_SECONDS)
        if self._first.done():
            first, self._first = self._first, None
            await first

    async def _read(self) -> None:
        async with self._reading:
            place = None if self._place is None else (self._place[0] - _SLACK, "")
            while True:
                page = await self._store.ended_runs(place, limit=_PAGE)
                again = [run.id for run in page if run.attempt > 1 and run.id not in self._near]
                restarts = await self._store.restarts(again)
                for run in page:
                    if run.id not in self._near:
                        self._end(run, restarts.get(run.id, ()))
                if len(page) < _PAGE:
                    break
                place = place_of(page[-1])
            self._complete = True

    def _end(self, run: Run, restarts: Sequence[Restart]) -> None:
        place = place_of(run)
        self._place = place if self._place is None else max(place, self._place)
        self._near[run.id] = place[0]
        self.recent.append(run)
        self._over.states[run.state] += 1
        self._over.time(_booked(None, run), place[0].timestamp())
        self._restarted(run.id, restarts)
        self._seen.pop(run.id, None)

    # restarts

    async def _count_restarts(self, attempts: Mapping[str, Attempt]) -> None:
        """Count the restarts of live runs as far as they have come."""
        changed = [
            attempt
            for run, attempt in attempts.items()
            if attempt.restart is not None and not self._is_counted(run, attempt.restart)
        ]
        # The restart before may have gone on since it was counted, and others may have come.
        earlier = await self._store.restarts([a.run for a in changed if a.number > 2])
        for attempt in changed:
            if attempt.restart is not None and attempt.run not in self._near:
                before = [r for r in earlier.get(attempt.run, ()) if r.attempt < attempt.number]
                self._restarted(attempt.run, [*before, attempt.restart])

    def _is_counted(self, run: str, restart: Restart) -> bool:
        return run in self._near or (run in self._seen and self._seen[run].newest is restart)

    def _restarted(self, run: str, restarts: Sequence[Restart]) -> None:
        for restart in restarts:
            seen = self._seen.get(run)
            if seen is not None and restart.attempt < seen.newest.attempt:
                continue
            known: frozenset[str] = frozenset()
            if seen is not None and restart.attempt == seen.newest.attempt:
                known = seen.phases
            else:
                self._over.restarts[restart.cause.value] += 1
            self._seen[run] = _Seen(restart, self._over.phases(restart, known))


def _settled(run: Run, newest: Newest | None, now: float) -> float:
    """Until when a run's time is as booked. What follows the newest step may turn out a stall."""
    if run.ended_at is not None:
        return run.ended_at.timestamp()
    if run.ledger.bucket in _TRAINING and newest is not None and newest.step is not None:
        return newest.time
    return now
