"""Counters and histograms of /metrics: from the run database, and never going back."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest

from jobs.clock import ManualClock
from jobs.events import RankSamples
from monitors.failures import Cause
from monitors.types import Severity
from orchestrator.alerts.log import LogNotifier
from orchestrator.alerts.port import CountedNotifier
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Attempt, Run
from orchestrator.core.model.states import RunState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.server.counters import BOUNDS, Histogram, Tallies, Tally
from tests.plane import at, attempts, finished_run, restart, spec

ON_GPUS = spec(resources={"nodes": 2, "gpus_per_node": 4})


class Here:
    """As much of the server's context as counting takes."""

    def __init__(self, now: dt.datetime) -> None:
        self.clock = ManualClock(now)
        self.store = self
        self.known: list[Attempt] = []
        self.newest: dt.datetime | None = None

    async def attempts(self, _run: str) -> list[Attempt]:
        return self.known

    async def sample_tail(self, _run: str, *, count: int) -> list[tuple[int, RankSamples]]:
        if self.newest is None:
            return []
        return [(1, RankSamples(rank=0, step=[count], time=[self.newest.timestamp()]))]


def live(book: Ledger, **fields: Any) -> Run:
    return finished_run(
        spec=ON_GPUS, state=RunState.RUNNING, ended_at=None, ledger=book, attempt=1, **fields
    )


async def counted(tallies: Tallies, here: Here, *runs: Run) -> Tally:
    return await tallies.count(here, runs)  # type: ignore[arg-type]


async def test_a_restart_is_in_the_histograms_phase_by_phase() -> None:
    here = Here(at(300))
    here.known = attempts()
    tally = await counted(Tallies(), here, finished_run())
    assert tally.restarts == {"infrastructure": 1}
    assert tally.detection.sum == pytest.approx(0.1)
    sums = {phase: histogram.sum for phase, histogram in tally.recovery.items()}
    expected = {"detect": 0.1, "stop": 0.1, "place": 0, "start": 0.5, "restore": 0.2}
    assert sums == pytest.approx({**expected, "recompute": 0.5})
    assert tally.recovery["start"].buckets[:3] == [("0.1", 0), ("0.25", 0), ("0.5", 1)]
    assert tally.recovery["start"].buckets[-1] == ("+Inf", 1)


async def test_phases_not_reached_and_requests_of_people_are_left_out() -> None:
    here = Here(at(300))
    asked = restart(cause=Cause.OPERATOR, restored_at=None, recovered_at=None)
    here.known = [dataclasses.replace(attempts()[1], restart=asked)]
    tally = await counted(Tallies(), here, finished_run())
    assert tally.restarts == {"operator": 1}
    assert tally.detection.buckets[-1] == ("+Inf", 0)
    assert tally.recovery["recompute"].buckets[-1] == ("+Inf", 0)
    assert tally.recovery["stop"].buckets[-1] == ("+Inf", 1)


def test_histograms_add_up() -> None:
    one, two = Histogram(), Histogram()
    for seconds in (BOUNDS[0], 7200.0):
        one.observe(seconds)
    two.add(one)
    two.add(one)
    assert [count for _, count in two.buckets] == [2.0] * len(BOUNDS) + [4.0]
    assert two.sum == pytest.approx(2 * (BOUNDS[0] + 7200))


async def test_gpu_time_is_wall_time_of_every_gpu_and_outlives_the_server() -> None:
    over = finished_run(spec=ON_GPUS)
    for tallies in (Tallies(), Tallies()):  # another server of the same database
        for _ in range(2):
            tally = await counted(tallies, Here(at(300)), over)
            assert tally.gpu_seconds["productive"] == 190 * 8
            assert tally.gpu_seconds["queued"] == 2 * 8
    assert (await counted(Tallies(), Here(at(300)), finished_run())).gpu_seconds["productive"] == 0


async def test_what_turns_out_a_stall_has_not_been_told_as_productive() -> None:
    here, book = Here(at(100)), Ledger(bucket=Bucket.PRODUCTIVE, since=at(0))
    here.newest = at(70)
    before = await counted(Tallies(), here, live(book))
    assert before.gpu_seconds["productive"] == 70 * 8
    stalled = time_ledger.switch(
        time_ledger.switch(book, Bucket.STALLED, at(70)), Bucket.STARTING, at(100)
    )
    after = await counted(Tallies(), here, live(stalled))  # the server was restarted in between
    assert after.gpu_seconds["productive"] == 70 * 8
    assert after.gpu_seconds["stalled"] == 30 * 8


async def test_a_save_that_is_booked_late_takes_nothing_back() -> None:
    here, tallies = Here(at(100)), Tallies()
    here.newest = at(100)
    book = Ledger(bucket=Bucket.PRODUCTIVE, since=at(0))
    told: Sequence[float] = []
    for now in (at(100), at(101), at(110)):
        here.newest = now
        told = [*told, (await counted(tallies, here, live(book))).gpu_seconds["productive"]]
        if now == at(100):
            closed = time_ledger.switch(book, Bucket.PRODUCTIVE, now)
            book = time_ledger.move(closed, Bucket.PRODUCTIVE, Bucket.CHECKPOINTING, 4.0)
    assert told == [800, 800, 106 * 8]


async def test_notices_are_counted_by_how_they_went() -> None:
    class Broken(LogNotifier):
        channel = "broken"

        async def notify(self, notice: Notify) -> None:
            raise ConnectionError(notice.text)

    notice = Notify(
        id="n",
        cause="c",
        reason="r",
        run="r",
        severity=Severity.WARNING,
        text="t",
        incident_kind="k",
    )
    good, bad = CountedNotifier(LogNotifier()), CountedNotifier(Broken())
    await good.notify(notice)
    with pytest.raises(ConnectionError):
        await bad.notify(notice)
    assert good.counts == {("log", "delivered"): 1, ("log", "failed"): 0}
    assert bad.counts == {("broken", "delivered"): 0, ("broken", "failed"): 1}
