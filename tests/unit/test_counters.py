"""Counters and histograms of /metrics: from the run database, and never going back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from monitors.failures import Cause
from monitors.types import Severity
from orchestrator.alerts.log import LogNotifier
from orchestrator.alerts.port import CountedNotifier
from orchestrator.controller.live_numbers import Newest
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Entity, Run
from orchestrator.core.model.state import State
from orchestrator.core.model.states import RunState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.database.ended_runs import Place, place_of
from orchestrator.errors import DatabaseUnavailableError
from orchestrator.server.metrics.counters import Tallies, Tally
from tests.plane import RUN_ID, at, attempts, finished_run, restart, spec

ON_GPUS = spec(resources={"nodes": 2, "gpus_per_node": 4})


class History:
    """Ended runs and restarts as the database has them."""

    def __init__(self, *runs: Run) -> None:
        self.runs_read = 0
        self.known = {run.id: run for run in runs}
        self.attempts_of: dict[str, list[Attempt]] = {}
        self.away = False

    async def ended_runs(self, after: Place | None, *, limit: int) -> list[Run]:
        if self.away:
            raise DatabaseUnavailableError("away")
        ended = sorted((r for r in self.known.values() if r.ended_at is not None), key=place_of)
        found = [run for run in ended if after is None or place_of(run) > after][:limit]
        self.runs_read += len(found)
        return found

    async def restarts(self, runs: Sequence[str]) -> dict[str, list[Restart]]:
        if self.away:
            raise DatabaseUnavailableError("away")
        found = {}
        for run in runs:
            mine = [each.restart for each in self.attempts_of.get(run, ()) if each.restart]
            if mine:
                found[run] = mine
        return found


def live(book: Ledger, **fields: Any) -> Run:
    fields = {"state": RunState.RUNNING, "ended_at": None, "attempt": 1, **fields}
    return finished_run(spec=ON_GPUS, ledger=book, **fields)


def reported(seconds: float) -> dict[str, Newest]:
    return {RUN_ID: Newest(attempt=1, step=1, time=at(seconds).timestamp())}


async def count(
    tallies: Tallies,
    *entities: Entity,
    now: float = 300,
    newest: dict[str, Newest] | None = None,
) -> Tally:
    found = await tallies.count(State(entities), newest or {}, at(now))
    assert found is not None
    return found


def with_restart(changed: Restart, number: int = 2) -> Attempt:
    return dataclasses.replace(attempts()[1], number=number, restart=changed)


async def test_a_restart_is_in_the_histograms_phase_by_phase() -> None:
    history = History(finished_run())
    history.attempts_of[RUN_ID] = attempts()
    tally = await count(Tallies(history))
    assert tally.restarts == {"infrastructure": 1}
    assert tally.detection.sum == pytest.approx(0.1)
    sums = {phase: histogram.sum for phase, histogram in tally.recovery.items()}
    expected = {"detect": 0.1, "stop": 0.1, "place": 0, "start": 0.5, "restore": 0.2}
    assert sums == pytest.approx({**expected, "recompute": 0.5})
    assert tally.recovery["start"].counts[:3] == [0, 0, 1]


@pytest.mark.parametrize("cause", [Cause.OPERATOR, Cause.PREEMPTION])
async def test_phases_not_reached_and_the_detection_of_requests_are_left_out(cause: Cause) -> None:
    history = History(finished_run())
    asked = restart(cause=cause, restored_at=None, recovered_at=None)
    history.attempts_of[RUN_ID] = [with_restart(asked)]
    tally = await count(Tallies(history))
    assert tally.restarts == {cause.value: 1}
    assert sum(tally.detection.counts) == sum(tally.recovery["recompute"].counts) == 0
    assert sum(tally.recovery["stop"].counts) == 1


async def test_a_restart_under_way_is_counted_once_and_its_phases_as_they_come() -> None:
    history = History()
    tallies = Tallies(history)
    run = live(Ledger(since=at(0)), attempt=2)
    begun = restart(ready_at=None, restored_at=None, recovered_at=None)
    seen = []
    for now in (begun, begun, restart(recovered_at=None), restart(), restart()):
        tally = await count(tallies, run, with_restart(now))
        phases = [sum(tally.recovery[phase].counts) for phase in ("stop", "start", "recompute")]
        seen.append((tally.restarts["infrastructure"], *phases))
    assert seen == [(1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1), (1, 1, 1, 1)]
    # Two more restarts between two scrapes, the first of which is no longer in memory.
    third = with_restart(restart(attempt=3), 3)
    history.attempts_of[RUN_ID] = [with_restart(restart()), third]
    tally = await count(tallies, run, with_restart(restart(attempt=4, recovered_at=None), 4))
    assert tally.restarts["infrastructure"] == 3
    history.known[RUN_ID] = finished_run(attempt=4)
    history.attempts_of[RUN_ID].append(with_restart(restart(attempt=4), 4))
    tally = await count(tallies)
    assert tally.restarts["infrastructure"] == sum(tally.recovery["recompute"].counts) == 3


async def test_an_ended_run_is_read_once_however_many_scrapes_there_are() -> None:
    runs = [
        finished_run(id=f"01JNB{n:021}", ended_at=at(200 + 100 * n), attempt=1) for n in range(9)
    ]
    history = History(*runs)
    tallies = Tallies(history)
    for _ in range(3):
        tally = await count(tallies)
        assert tally.states == {RunState.SUCCEEDED: 9}
    assert history.runs_read == 9 + 2, "the newest is read again: others may end as it did"
    assert [run.id for run in tallies.recent] == [run.id for run in runs]


async def test_a_run_is_live_or_ended_and_never_both_or_neither() -> None:
    history = History()
    tallies = Tallies(history)
    run = live(Ledger(since=at(0)))
    assert (await count(tallies, run)).states == {RunState.RUNNING: 1}
    # It has left the state, and its end is being written.
    assert (await count(tallies)).states == {RunState.RUNNING: 1}
    history.known[RUN_ID] = ended = finished_run()
    # It ends in the database while its workers are still leaving.
    for now in (300, 400, 500):
        history.known[f"{now}"] = finished_run(id=f"{now}", ended_at=at(now), attempt=1)
        tally = await count(tallies, ended, now=now)
        assert tally.states == {RunState.SUCCEEDED: now / 100 - 1}
    assert (await count(tallies)).states == {RunState.SUCCEEDED: 4}


async def test_the_counters_wait_for_the_past_and_outlive_an_outage() -> None:
    history = History(finished_run())
    history.away = True
    tallies = Tallies(history)
    assert await tallies.count(State(), {}, at(300)) is None
    history.away = False
    assert (await count(tallies)).states == {RunState.SUCCEEDED: 1}
    history.away = True
    assert (await count(tallies)).states == {RunState.SUCCEEDED: 1}


async def test_gpu_time_is_wall_time_of_every_gpu_and_outlives_the_server() -> None:
    history = History(finished_run(spec=ON_GPUS))
    for tallies in (Tallies(history), Tallies(history)):  # another server of the same database
        for _ in range(2):
            tally = await count(tallies)
            assert tally.gpu_seconds["productive"] == 190 * 8
            assert tally.gpu_seconds["queued"] == 2 * 8
    assert (await count(Tallies(History(finished_run())))).gpu_seconds["productive"] == 0


async def test_what_turns_out_a_stall_has_not_been_told_as_productive() -> None:
    book = Ledger(bucket=Bucket.PRODUCTIVE, since=at(0))
    before = await count(Tallies(History()), live(book), now=100, newest=reported(70))
    assert before.gpu_seconds["productive"] == 70 * 8
    stalled = time_ledger.switch(
        time_ledger.switch(book, Bucket.STALLED, at(70)), Bucket.STARTING, at(100)
    )
    # The server was restarted in between.
    after = await count(Tallies(History()), live(stalled), now=100, newest=reported(70))
    assert after.gpu_seconds["productive"] == 70 * 8
    assert after.gpu_seconds["stalled"] == 30 * 8


async def test_a_save_that_is_booked_late_takes_nothing_back() -> None:
    tallies = Tallies(History())
    book = Ledger(bucket=Bucket.PRODUCTIVE, since=at(0))
    told: list[float] = []
    for now in (100, 101, 110):
        tally = await count(tallies, live(book), now=now, newest=reported(now))
        told.append(tally.gpu_seconds["productive"])
        if now == 100:
            closed = time_ledger.switch(book, Bucket.PRODUCTIVE, at(now))
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
