"""A run over which babysit itself fails never stops the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.clusters.port import WorkerLaunch
from orchestrator.controller.background_loops import BackgroundLoops
from orchestrator.controller.dispatcher import OutboxDispatcher
from orchestrator.core import machine
from orchestrator.core.messages.events import NodeChanged, RunSubmitted
from orchestrator.core.messages.gang_events import GangReady
from orchestrator.core.model.states import RunState
from orchestrator.core.placement import bulkhead, snapshot
from orchestrator.core.scheduling import Plan, Snapshot
from orchestrator.errors import ConflictError, LeadershipLostError
from tests.controller_harness import Harness
from tests.world import on_its_own, spec


def epoch(harness: Harness) -> int:
    lead = harness.controller._leadership
    return 0 if lead is None else id(lead)


def trains(harness: Harness, run: str) -> bool:
    return harness.state_of(run) is RunState.RUNNING


async def submit(harness: Harness, run: str, **beyond: object) -> None:
    """Submit a run; `beyond` is put into its spec past the validation."""
    asked = on_its_own(spec(run, nodes=1), run).model_copy(update=beyond)
    await harness.controller.submit(harness.event(RunSubmitted, run=run, spec=asked))


async def lead() -> Harness:
    harness = Harness(nodes=2)
    controller = await harness.open()
    await harness.until(lambda: controller.is_leader and bool(controller.state.nodes))
    return harness


async def check_others_run(harness: Harness, error: str) -> None:
    """The run `poison` is held with the error as its reason, and `innocent` runs."""
    state = harness.controller.state
    assert await harness.until(lambda: "innocent" in state.attempts)
    held = state.runs["poison"]
    assert held.state is RunState.HELD
    assert error in held.reason
    assert "babysit release poison" in held.reason
    journal: Any = harness.store._journal
    assert "run_set_aside" in [entry.name for entry in journal.values()]
    await harness.controller.stop()


async def test_a_run_that_overflows_a_timer_is_held_and_the_others_run() -> None:
    harness = await lead()
    await submit(harness, "poison", max_runtime=1e12)
    await submit(harness, "innocent")
    await check_others_run(harness, "OverflowError")


async def test_a_run_that_cannot_be_planned_is_found_by_leaving_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = bulkhead.plan

    def fails_over_poison(taken: Snapshot, now: Any) -> Plan:
        if any(demand.run == "poison" for demand in taken.demands):
            raise ZeroDivisionError("GPUs per rack")
        return planned(taken, now)

    monkeypatch.setattr(bulkhead, "plan", fails_over_poison)
    harness = await lead()
    await submit(harness, "poison")
    await submit(harness, "innocent")
    await check_others_run(harness, "GPUs per rack")


async def test_a_run_whose_demand_cannot_be_told_is_set_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demand_of = snapshot.demand_of

    def fails_over_poison(state: Any, run: Any, now: Any) -> Any:
        if run.id == "poison":
            raise KeyError("rack")
        return demand_of(state, run, now)

    monkeypatch.setattr(snapshot, "demand_of", fails_over_poison)
    harness = await lead()
    await submit(harness, "poison")
    await submit(harness, "innocent")
    await check_others_run(harness, "rack")


async def test_a_spec_that_cannot_be_launched_fails_its_run_and_no_node() -> None:
    harness = await lead()
    launch = harness.cluster.launch

    async def refuses(asked: WorkerLaunch) -> None:
        if asked.run == "poison":
            raise ValueError("illegal environment variable name")
        await launch(asked)

    harness.cluster.launch = refuses  # type: ignore[method-assign]
    await submit(harness, "poison")
    await submit(harness, "innocent")
    state = harness.controller.state
    assert await harness.until(lambda: "innocent" in state.attempts)
    assert await harness.until(lambda: harness.state_of("poison") is RunState.FAILED)
    assert not any(node.faults for node in state.nodes.values())
    await harness.controller.stop()


async def test_a_state_that_cannot_be_loaded_after_a_defect_ends_the_lead_not_the_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state in memory is half changed: whatever is decided on it would be wrong."""
    harness = await lead()
    await submit(harness, "innocent")
    first, load, failures = epoch(harness), harness.store.load, iter([True])

    async def fails_once() -> Any:
        if next(failures, False):
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "a row that cannot be read")
        return await load()

    def half_done(turn: Any, event: Any) -> None:
        turn.change_run("innocent", reason="half done")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(harness.store, "load", fails_once)
    monkeypatch.setattr(machine, "_HANDLERS", {**machine._HANDLERS, NodeChanged: half_done})
    bad = harness.event(NodeChanged, node="node-1", state="cordoned", reason="test")
    asking = asyncio.create_task(harness.controller.submit(bad))
    await harness.until(asking.done)
    assert isinstance(asking.exception(), LeadershipLostError)
    assert await harness.until(lambda: epoch(harness) not in {0, first})
    assert harness.controller.state.runs["innocent"].reason != "half done"
    assert await harness.until(lambda: trains(harness, "innocent"))
    await harness.controller.stop()


async def test_a_report_that_the_core_refuses_like_a_request_changes_nothing_by_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half_done(turn: Any, event: Any) -> None:
        turn.change_run("innocent", reason="half done")
        raise ConflictError("a defect: agents ask for nothing")

    monkeypatch.setattr(machine, "_HANDLERS", {**machine._HANDLERS, GangReady: half_done})
    harness = await lead()
    await submit(harness, "innocent")
    assert await harness.until(lambda: harness.state_of("innocent") is RunState.HELD)
    held = harness.controller.state.runs["innocent"]
    assert "a defect: agents ask for nothing" in held.reason
    assert harness.controller.set_aside["rank_ready"] == 1
    await harness.controller.stop()


async def test_a_background_loop_that_fails_begins_anew_with_the_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tick, failures = BackgroundLoops._tick, iter([True])

    async def fails_once(loops: Any) -> None:
        if next(failures, False):
            raise BrokenPipeError(32, "Broken pipe")
        await tick(loops)

    monkeypatch.setattr(BackgroundLoops, "_tick", fails_once)
    harness = await lead()
    await submit(harness, "limited", max_runtime=2.0)
    assert await harness.until(lambda: harness.state_of("limited") is not None)
    assert await harness.until(lambda: harness.state_of("limited") is RunState.FAILED)
    await harness.controller.stop()


async def test_an_instruction_that_cannot_be_dispatched_keeps_back_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell = OutboxDispatcher._tell

    def fails_over_poison(dispatcher: Any, command: Any) -> None:
        if command.run == "poison":
            raise KeyError("a link of an older version")
        tell(dispatcher, command)

    monkeypatch.setattr(OutboxDispatcher, "_tell", fails_over_poison)
    harness = await lead()
    await submit(harness, "poison")
    await submit(harness, "innocent")
    assert await harness.until(lambda: trains(harness, "innocent"))
    await harness.kill()
    controller = await harness.open()  # the next leader finds the instruction in the outbox
    assert await harness.until(lambda: controller.is_leader)
    await harness.controller.stop()
