"""Transactions of the controller: killed between any two calls, and among defects of our own."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from jobs.events import Heartbeat, RankReady, Report
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.controller.controller import Controller
from orchestrator.controller.dispatcher import LAUNCH_TRIES
from orchestrator.controller.leadership import Leadership
from orchestrator.controller.sample_events import SampleEvents
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core import machine, timers
from orchestrator.core.messages.events import (
    CapacityChanged,
    NodeChanged,
    NodeInfo,
    RunReleased,
    RunSubmitted,
    StepReached,
)
from orchestrator.core.messages.gang_events import GangReady
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.supervision.reconciliation import number_of
from orchestrator.core.turn import Turn
from orchestrator.database.port import Batch
from orchestrator.errors import (
    InternalError,
    InvariantError,
    LeadershipLostError,
    NotLeaderError,
    SchemaError,
)
from tests.controller_harness import STEPS, Agent, Fate, Harness, samples
from tests.replay import check_whole, replay
from tests.world import on_its_own, spec


def leading(harness: Harness) -> Leadership:
    """The lead of the hour."""
    lead = harness.controller._leadership
    assert lead is not None
    return lead


def over(harness: Harness, run: str = "run-1") -> bool:
    state = harness.state_of(run)
    return state in {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


def settled(harness: Harness) -> bool:
    """The run is over, its workers are gone, and everything is carried out and noted down."""
    return over(harness) and not harness.controller.state.runs and not harness.store.left()


async def settle_with_releases(harness: Harness) -> None:
    """Release the run whenever babysit holds it, until it is over."""
    while not settled(harness):
        assert await harness.until(
            lambda: settled(harness) or harness.state_of() is RunState.HELD
        ), f"stuck: {harness.state_of()}"
        if harness.state_of() is RunState.HELD:
            reason = harness.controller.state.runs["run-1"].reason
            assert "babysit failed twice over the event" in reason
            release = harness.event(RunReleased, run="run-1", actor="operator:mia")
            asking = asyncio.create_task(harness.controller.submit(release))
            await harness.until(asking.done)


async def live(fate: Fate) -> Harness:
    """A run that recovers once and succeeds, under a controller with that fate, and its next."""
    harness = Harness()
    await harness.open(fate)
    await harness.submit()
    if not await harness.until(lambda: settled(harness)):
        assert fate.dead.is_set(), f"stuck: {harness.state_of()}"
        await harness.kill()
        await harness.open()
        if harness.state_of() is None:
            await harness.submit()
        assert await harness.until(lambda: settled(harness)), f"stuck: {harness.state_of()}"
    await harness.kill()
    return harness


async def steps_told(harness: Harness) -> list[int]:
    tail = await harness.store.sample_tail("run-1")
    return [step for _, told in tail for step in told.step]


async def check(harness: Harness) -> None:
    assert harness.state_of() is RunState.SUCCEEDED
    assert [agent.started for agent in harness.agents.values()] == [[1, 2], [1, 2]]
    assert await steps_told(harness) == list(range(1, 2 * STEPS + 1)), "by the rank that speaks"
    journal = await harness.store.journal(limit=10_000)
    check_whole(journal)
    assert not replay(journal).runs


async def test_a_controller_killed_between_any_two_calls_leaves_nothing_lost_or_doubled() -> None:
    fate = Fate()
    await check(await live(fate))
    assert fate.calls.count("launch") == 2
    for call in range(len(fate.calls)):
        for after in (False, True):
            try:
                await check(await live(Fate(call, after=after)))
            except AssertionError as error:
                when = "after" if after else "before"
                raise AssertionError(f"killed {when} call {call} ({fate.calls[call]})") from error


# defects of our own


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[type, list[Any]]:
    """Kinds of events the core cannot take: a handler that changes the state, and then fails.

    By the kind that was sent: an agent's own event and its gang form have one handler.
    """
    met: dict[type, list[Any]] = {}
    before = dict(machine._HANDLERS)

    def handler(turn: Any, event: Any) -> None:
        sent = turn.event
        if type(sent) in met:
            met[type(sent)].append(sent)
            for run in list(turn.state.runs):
                turn.change_run(run, reason="half done")
            raise KeyError("a defect")
        before[type(event)](turn, event)

    monkeypatch.setattr(machine, "_HANDLERS", dict.fromkeys(before, handler))
    return met


async def lead(harness: Harness) -> Controller:
    controller = await harness.open()
    await harness.until(lambda: controller.is_leader and bool(controller.state.nodes))
    return controller


async def test_after_a_defect_new_agents_are_still_launched_and_told(
    broken: dict[type, list[Any]],
) -> None:
    harness = Harness()
    controller = await lead(harness)
    broken[NodeChanged] = []
    with pytest.raises(InternalError, match="nothing was changed"):
        await controller.submit(
            harness.event(NodeChanged, node="node-1", state="cordoned", reason="test")
        )
    await harness.submit()
    assert await harness.until(lambda: settled(harness))
    await harness.kill()
    await check(harness)


async def test_a_scheduling_pass_that_waits_outlives_a_defect(
    broken: dict[type, list[Any]],
) -> None:
    """A run is submitted, and the request behind it fails before the scheduling pass has run."""
    harness = Harness()
    controller = await lead(harness)
    broken[NodeChanged] = []
    bad = harness.event(NodeChanged, node="node-1", state="cordoned", reason="test")
    new = harness.event(RunSubmitted, run="run-1", spec=on_its_own(spec(), "run-1"))
    commit, behind = harness.store.commit, asyncio.Event()

    async def once_one_is_behind(batch: Batch, *, epoch: int) -> int:
        await behind.wait()
        return await commit(batch, epoch=epoch)

    harness.store.commit = once_one_is_behind  # type: ignore[method-assign]
    turns = [asyncio.create_task(controller.submit(event)) for event in (new, bad)]
    await harness.until(lambda: len(leading(harness).queue) == 1)
    behind.set()
    _, failed = await asyncio.gather(*turns, return_exceptions=True)
    assert isinstance(failed, InternalError)
    assert controller.state.runs["run-1"].state is RunState.STARTING
    await harness.kill()


async def test_one_event_that_fails_takes_no_other_of_its_report_with_it(
    broken: dict[type, list[Any]],
) -> None:
    harness = Harness(together=True)
    broken[RankReady] = []
    await lead(harness)
    await harness.submit()
    await settle_with_releases(harness)
    await harness.kill()
    await check(harness)
    names = Counter(entry.name for entry in await harness.store.journal(limit=10_000))
    tries = Counter(event.id for event in broken[RankReady])
    assert set(tries.values()) <= {2, 3}, "twice alone, and perhaps once together with another"
    assert "rank_ready" not in names
    assert names["event_set_aside"] == harness.controller.set_aside["rank_ready"] == 4
    assert names["ranks_started"] == names["rank_restored"] == 4


async def test_a_report_that_the_database_refuses_is_taken_without_its_events() -> None:
    """Else the agent would send it for ever, and nothing behind it would ever arrive."""
    harness = Harness()
    commit = harness.store.commit
    refused: list[set[str]] = []

    async def refuse(batch: Batch, *, epoch: int) -> int:
        names = {entry.name for entry in batch.journal}
        if names & {"rank_ready", "gang_ready"}:
            refused.append(names)
            raise InvariantError("refused")
        return await commit(batch, epoch=epoch)

    harness.store.commit = refuse  # type: ignore[method-assign]
    await lead(harness)
    await harness.submit()
    await settle_with_releases(harness)
    await harness.kill()
    await check(harness)
    assert sum("rank_ready" in names for names in refused) == 4 * 3
    aside = [e for e in await harness.store.journal(limit=10_000) if e.name == "event_set_aside"]
    assert {entry.payload["body"]["rank"] for entry in aside} == {0, 1}


@pytest.mark.parametrize("error", [RuntimeError("a pool that is gone"), SchemaError("a restore")])
async def test_a_store_that_fails_in_any_way_costs_no_event(error: Exception) -> None:
    """The transaction with the exit of the rank that dies fails twice."""
    harness = Harness()
    commit = harness.store.commit
    failures = iter([error] * 2)

    async def fail_twice(batch: Batch, *, epoch: int) -> int:
        if any(entry.name == "rank_exited" for entry in batch.journal):
            for failure in failures:
                raise failure
        return await commit(batch, epoch=epoch)

    harness.store.commit = fail_twice  # type: ignore[method-assign]
    await lead(harness)
    await harness.submit()
    assert await harness.until(lambda: settled(harness))
    await harness.kill()
    await check(harness)
    assert next(failures, None) is None
    assert not harness.controller.set_aside


async def crowd(harness: Harness, workers: int) -> list[str]:
    """A run whose agents all joined, and were told to start."""
    await lead(harness)
    await harness.submit(nodes=workers)
    state = harness.controller.state
    assert await harness.until(lambda: "run-1" in state.attempts)
    return [seat.worker for seat in state.attempts["run-1"].seats]


async def say_ready(harness: Harness, workers: list[str], sequence: int = 100) -> list[object]:
    """All of them report at once that their rank is ready."""
    reports = [
        harness.controller.report(
            worker,
            Report(
                sequence=sequence,
                attempt=1,
                events=(
                    harness.event(RankReady, run="run-1", worker=worker, attempt=1, rank=rank),
                ),
            ),
        )
        for rank, worker in enumerate(workers)
    ]
    return list(await asyncio.gather(*reports, return_exceptions=True))


async def test_reports_that_wait_together_are_stored_together() -> None:
    harness = Harness(nodes=4, silent=True)
    workers = await crowd(harness, 4)
    before = len(harness.store.batches)
    assert await say_ready(harness, workers) == [None] * 4
    stored = harness.store.batches[before:]
    assert [dict(batch.sequences) for batch in stored] == [dict.fromkeys(workers, 100)]
    assert [e.name for e in stored[0].journal if e.kind == "event"] == ["gang_ready"]
    assert harness.controller.state.attempts["run-1"].ready_ranks == {0, 1, 2, 3}
    assert [leading(harness).live.last_sequence(worker) for worker in workers] == [100] * 4
    assert await say_ready(harness, workers) == [None] * 4  # said again: acknowledged, and no more
    assert not any(batch.journal for batch in harness.store.batches[before + 1 :])
    await harness.kill()
    check_whole(await harness.store.journal(limit=10_000))


async def test_where_the_core_fails_over_reports_together_each_is_taken_alone(
    broken: dict[type, list[Any]],
) -> None:
    harness = Harness(nodes=4, silent=True)
    workers = await crowd(harness, 4)
    broken[GangReady] = []
    assert await say_ready(harness, workers) == [None] * 4
    assert broken[GangReady]
    assert harness.controller.state.attempts["run-1"].ready_ranks == {0, 1, 2, 3}
    assert "half done" not in harness.controller.state.runs["run-1"].reason
    names = Counter(entry.name for entry in await harness.store.journal(limit=10_000))
    assert (names["gang_ready"], names["rank_ready"]) == (0, 4)
    await harness.kill()


async def test_reports_together_are_not_acknowledged_by_a_deposed_leader() -> None:
    harness = Harness(nodes=4, silent=True)
    workers = await crowd(harness, 4)

    async def refuse(batch: Batch, *, epoch: int) -> int:
        raise LeadershipLostError("another leads")

    harness.store.commit = refuse  # type: ignore[method-assign]
    errors = await say_ready(harness, workers)
    assert all(isinstance(error, (LeadershipLostError, NotLeaderError)) for error in errors)
    await harness.kill()


async def test_samples_that_the_database_refuses_do_not_block_what_comes_after() -> None:
    harness = Harness()
    commit = harness.store.commit

    async def refuse(batch: Batch, *, epoch: int) -> int:
        if any(3 in rank.step for samples in batch.samples for rank in samples.ranks):
            raise InvariantError("refused")
        return await commit(batch, epoch=epoch)

    harness.store.commit = refuse  # type: ignore[method-assign]
    await lead(harness)
    await harness.submit()
    assert await harness.until(lambda: settled(harness))
    await harness.kill()
    assert await steps_told(harness) == [n for n in range(1, 2 * STEPS + 1) if n != 3]


async def test_a_timer_that_always_fails_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness()
    await lead(harness)
    fired: list[str] = []
    real = timers.HANDLERS[Timer.MAX_RUNTIME]

    def timer(turn: Turn, run: str, subject: str) -> None:
        fired.append(run)
        if run == "run-1":
            raise KeyError("a defect")
        real(turn, run, subject)

    monkeypatch.setattr(timers, "HANDLERS", {**timers.HANDLERS, Timer.MAX_RUNTIME: timer})
    await harness.submit("run-1", nodes=1, max_runtime=3)
    await harness.submit("run-2", nodes=1, max_runtime=5)
    assert await harness.until(lambda: over(harness, "run-2"))
    assert harness.state_of("run-2") is RunState.FAILED
    assert fired == ["run-1", "run-1", "run-2"], "two tries are enough to know"
    assert harness.state_of("run-1") is RunState.HELD
    assert "KeyError" in harness.controller.state.runs["run-1"].reason
    await harness.kill()


async def test_background_loops_go_on_when_the_cluster_does_not_answer() -> None:
    harness = Harness()
    nodes, failures = harness.cluster.nodes, iter([True, True])

    async def flaky() -> list[NodeInfo]:
        if next(failures, False):
            raise ClusterError("the cluster does not answer", node="", worker="")
        return await nodes()

    harness.cluster.nodes = flaky  # type: ignore[method-assign]
    controller = await harness.open()
    assert await harness.until(lambda: bool(controller.state.nodes))
    await harness.kill()


async def test_background_loops_go_on_after_a_defect(broken: dict[type, list[Any]]) -> None:
    harness = Harness()
    broken[CapacityChanged] = []
    controller = await harness.open()
    await harness.until(lambda: bool(broken[CapacityChanged]))
    del broken[CapacityChanged]
    assert await harness.until(lambda: bool(controller.state.nodes))
    await harness.kill()


async def test_a_stop_that_the_cluster_refuses_is_tried_again() -> None:
    harness = Harness(deaf=True)
    stop, failures = harness.cluster.stop, iter([True] * 3)

    async def flaky(worker: str, run: str) -> None:
        if next(failures, False):
            raise ClusterError("the node cannot be reached", node="", worker=worker)
        await stop(worker, run)

    harness.cluster.stop = flaky  # type: ignore[method-assign]
    await lead(harness)
    await harness.submit()
    assert await harness.until(lambda: settled(harness))
    await harness.kill()
    await check(harness)


async def test_an_agent_is_sent_on_by_a_server_that_no_longer_leads() -> None:
    """One that has nothing to report would else stay, and seem lost to who leads now."""
    harness = Harness()
    controller = await lead(harness)
    await harness.submit()
    await harness.until(lambda: bool(harness.agents))
    await controller.stop()
    with pytest.raises(NotLeaderError):
        await controller.heartbeat("run-1-w1", Heartbeat(attempt=0, time=0.0))
    await harness.kill()


async def test_a_lead_that_a_write_finds_lost_is_dropped_and_sought_again() -> None:
    harness = Harness()
    controller = await lead(harness)
    first = leading(harness).epoch
    await harness.store.acquire("another", 10.0, harness.clock.now(), force=True)
    asking = asyncio.create_task(
        controller.submit(
            harness.event(NodeChanged, node="node-1", state="cordoned", reason="test")
        )
    )
    await harness.until(asking.done)
    assert isinstance(asking.exception(), LeadershipLostError)
    assert await harness.until(lambda: controller.is_leader and leading(harness).epoch > first)
    assert leading(harness).epoch == first + 2
    await harness.clock.settle()
    assert controller.state.nodes["node-1"].state == "ready"
    await harness.kill()


def test_what_saves_blocked_is_counted_on_after_a_takeover() -> None:
    """Only the newest samples are read again: what came before them the core has counted."""
    harness = Harness()
    attempt = Attempt(
        run="run-1",
        number=1,
        state=AttemptState.RUNNING,
        seats=(),
        world_size=1,
        started_at=harness.clock.now(),
        step=1000,
        milestone=1003,
        blocked_seconds=500.0,
    )
    observer = RunSamplePipeline(spec())
    observer.rebuild([(1, samples(0, step)) for step in range(900, 1003)], attempt)
    report = Report(sequence=1, attempt=1, samples=(samples(0, 1003),))
    reached = SampleEvents("run-1", observer, report, harness.event).next(attempt)
    assert isinstance(reached, StepReached)
    assert reached.blocked_seconds == pytest.approx(500.0 + 3 * 0.25)


async def test_an_agent_connects_anew_to_a_server_that_lost_the_lead_and_has_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its link was dropped with the lead: signs of life alone would bring it no command."""
    monkeypatch.setattr(Agent, "_train", lambda _agent, _command: None)
    harness = Harness()
    controller = await harness.open()
    await harness.submit()

    def attached() -> bool:
        if not controller.is_leader:
            return False
        here = leading(harness)
        return len(here.live.state.workers) == 2 and all(
            here.dispatcher.attached(worker) for worker in here.live.state.workers
        )

    assert await harness.until(attached)
    first = leading(harness).epoch
    await harness.store.acquire("another", 10.0, harness.clock.now(), force=True)
    assert await harness.until(lambda: controller.is_leader and leading(harness).epoch > first)
    assert await harness.until(attached, ticks=200)
    await harness.kill()


async def test_an_agent_whose_launch_seemed_to_fail_is_ended_before_it_counts_as_gone() -> None:
    """The last try had started it; only the answer was lost."""
    harness = Harness()
    await harness.open()
    launch = harness.cluster.launch
    lost: list[str] = []

    async def answer_is_lost(order: WorkerLaunch) -> None:
        if number_of(order.worker) == 1:
            lost.append(order.worker)
            if len(lost) == LAUNCH_TRIES:
                await launch(order)
            raise ClusterError("time-out")
        await launch(order)

    harness.cluster.launch = answer_is_lost  # type: ignore[method-assign]
    await harness.submit()
    assert await harness.until(lambda: len(lost) == LAUNCH_TRIES)
    assert await harness.until(lambda: lost[0] not in harness.controller.state.workers)
    assert harness.cluster.workers[lost[0]].gone is not None
    await harness.kill()


async def test_what_a_transaction_makes_needless_is_noted_only_after_it() -> None:
    """A launch given up by a transaction that is never stored must be there for the next leader."""
    harness = Harness()
    controller = await lead(harness)
    noted: list[list[str]] = []
    commit, free = harness.store.commit, asyncio.Event()

    async def carried_out(ids: list[str], *, epoch: int) -> None:
        noted.append(ids)

    async def once_free(batch: Batch, *, epoch: int) -> int:
        await free.wait()
        return await commit(batch, epoch=epoch)

    harness.store.carried_out = carried_out  # type: ignore[method-assign,assignment]
    harness.store.commit = once_free  # type: ignore[method-assign]
    event = harness.event(NodeChanged, node="node-1", state="cordoned", reason="test")
    asking = asyncio.create_task(controller.submit(event))
    await harness.clock.settle()
    leading(harness).dispatcher.receipts.append("an-order")
    await harness.until(lambda: bool(noted), ticks=20)
    assert noted == []
    free.set()
    assert await harness.until(lambda: noted == [["an-order"]])
    await asking
    await harness.kill()
