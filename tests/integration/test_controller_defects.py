"""A run over which babysit itself fails never stops the others."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.clusters.port import WorkerLaunch
from orchestrator.core.messages.events import RunSubmitted
from orchestrator.core.model.states import RunState
from orchestrator.core.placement import bulkhead, snapshot
from orchestrator.core.scheduling import Plan, Snapshot
from tests.controller_harness import Harness
from tests.world import on_its_own, spec


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
