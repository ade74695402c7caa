"""Simulations tell the stories they are there for, and always the same ones."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.core.model.states import NodeState, RunState
from orchestrator.simulation.scenario.loader import load
from orchestrator.simulation.scenario.model import Scenario
from orchestrator.simulation.scenario.report import report
from orchestrator.simulation.scenario.world import World


def simulate(name: str, **changes: object) -> tuple[World, dict[str, Any]]:
    return outcome(load(name).scenario({key: str(value) for key, value in changes.items()}))


def outcome(scenario: Scenario) -> tuple[World, dict[str, Any]]:
    world = World(scenario)
    world.run()
    return world, report(world)


def small(**fields: Any) -> Scenario:
    """Two nodes and a spare, one run on two, saving every 10 steps of a second."""
    run = {
        "spec": {
            "name": "r",
            "command": ["python"],
            "resources": {"nodes": 2, "processes_per_node": 2, "gpus_per_node": 8},
            "checkpoint": {"directory": "/c", "every_steps": 10, "good_after_steps": 10},
            **fields.pop("spec", {}),
        },
        **fields.pop("run", {}),
    }
    cluster = {"nodes": 2, "spares": 1, **fields.pop("cluster", {})}
    return Scenario.model_validate(
        {"name": "small", "days": 0.1, "cluster": cluster, "runs": [run], **fields}
    )


def met_by(does: str, **fields: Any) -> Scenario:
    """The small scenario, met by failures at given times."""
    times = fields.pop("at", ["30m"])
    failure = {"name": does, "does": does, "at": times, **fields.pop("failure", {})}
    return small(failures=[failure], **fields)


# always the same


@pytest.mark.parametrize("name", ["crash_loop", "switch_failure", "lemon_nodes"])
def test_the_same_seed_gives_the_same_report_to_the_byte(name: str) -> None:
    first, again = (json.dumps(simulate(name)[1]) for _ in range(2))
    assert first == again
    assert json.dumps(simulate(name, seed=99)[1]) != first


def test_another_failure_does_not_shift_those_that_were_there() -> None:
    def spikes(world: World) -> list[tuple[float, str, str]]:
        return [mark for mark in world.tally.marks if mark[2] == "spike"]

    one = {"name": "spike", "does": "loss_spike", "expected": 4}
    other = {"name": "blip", "does": "loss_blip", "expected": 50}
    alone, _ = outcome(small(failures=[one]))
    beside, _ = outcome(small(failures=[one, other]))
    assert spikes(alone)
    assert spikes(alone) == spikes(beside)


# what happens to a run


def test_an_undisturbed_run_trains_from_its_first_start_to_its_end() -> None:
    world, told = outcome(small(run={"steps": 500}))
    assert told["runs"] == {"succeeded": 1}
    assert told["restarts"] == []
    assert told["run_list"][0]["step"] == 500
    assert {row["cause"] for row in told["losses"]} == {"first start", "saves"}
    assert not world.engine.refusals
    assert not world.site.agents


def test_the_ledger_adds_up_and_agrees_with_the_steps() -> None:
    world, told = outcome(met_by("crash"))
    [run] = world.tally.runs.values()
    seconds = run.run.ledger.seconds
    assert math.isclose(sum(seconds.values()), world.scenario.seconds, rel_tol=1e-6)
    assert seconds["productive"] >= run.run.best_step  # and the first step takes longer
    lost = sum(row["gpu_days"] for row in told["losses"])
    parts = told["gpu_days"]
    assert math.isclose(lost, sum(parts.values()) - parts["productive"], rel_tol=1e-6)


def lost_to(told: dict[str, Any]) -> set[str]:
    return {row["cause"] for row in told["losses"]}


def test_what_nobody_failed_for_is_not_blamed_on_what_failed_before() -> None:
    """A straggler goes on; people ask for a restart later, and that is what it costs."""
    asked = {"at": "40m", "kind": "restart_asked", "run": "r", "reason": "new image"}
    _, told = outcome(met_by("straggler", events=[asked]))
    assert told["restarts"][0]["remedy"] == "as asked"
    assert lost_to(told) == {"first start", "saves", "as asked"}


def test_a_crash_after_a_restart_that_was_asked_for_is_blamed_on_the_crash() -> None:
    asked = {"at": "20m", "kind": "restart_asked", "run": "r", "reason": "new image"}
    _, told = outcome(met_by("crash", cluster={"spares": 0}, events=[asked]))
    assert lost_to(told) == {"first start", "saves", "as asked", "crash"}


def test_a_run_that_leaves_for_another_has_lost_its_time_to_that() -> None:
    low = small(spec={"priority": "low"})
    high = low.runs[0].model_copy(
        update={
            "spec": low.runs[0].spec.model_copy(
                update={
                    "name": "h",
                    "priority": "high",
                    "checkpoint": low.runs[0].spec.checkpoint.model_copy(
                        update={"directory": "/h"}
                    ),
                }
            ),
            "submit": 1800.0,
            "steps": 600,
        }
    )
    _, told = outcome(low.model_copy(update={"runs": (*low.runs, high)}))
    assert told["restarts"][0]["remedy"] == "preempted"
    assert lost_to(told) == {"first start", "saves", "preempted"}


@pytest.mark.parametrize("name", ["crash_loop", "switch_failure", "lemon_nodes"])
def test_the_losses_are_all_that_was_not_productive(name: str) -> None:
    told = simulate(name)[1]
    lost = math.fsum(row["share"] for row in told["losses"])
    assert lost == pytest.approx(1.0 - told["ettr"], abs=1e-12)
    for row in told["losses"]:
        assert math.fsum(row["by_bucket"].values()) == pytest.approx(row["share"], abs=1e-15)


def test_runs_over_time_are_means_so_that_short_recoveries_look_short() -> None:
    world, told = outcome(met_by("crash", cluster={"spares": 0}))
    [run] = world.tally.runs.values()
    states = [*run.states, (world.scenario.seconds, run.run.state)]
    recovering = sum(
        after - at
        for (at, state), (after, _) in itertools.pairwise(states)
        if state in {RunState.RECOVERING, RunState.STARTING}
    )
    share = math.fsum(point["recovering"] for point in told["over_time"]) / 200
    assert share == pytest.approx(recovering / world.scenario.seconds, rel=1e-9)
    assert 0.0 < share < 0.1


# against what can be said in closed form


def test_an_outage_cuts_off_the_whole_rack_or_spine_and_nothing_else() -> None:
    cluster = {"nodes": 16, "spares": 0, "nodes_per_rack": 2, "racks_per_spine": 4}
    for level, size in (("rack", 2), ("spine", 8)):
        world = World(met_by("outage", cluster=cluster, failure={"level": level}))
        away: list[set[str]] = []

        def see(world: World = world, away: list[set[str]] = away) -> None:
            away.append({name for name, host in world.site.hosts.items() if host.away})

        for minute in (29, 31, 39, 41):
            world.engine.at(minute * 60.0, see)
        world.run()
        assert [len(hosts) for hosts in away] == [0, size, size, 0]
        assert len({world.site.hosts[name].info.labels[level] for name in away[1]}) == 1


@pytest.mark.parametrize("save_seconds", [1.0, 4.0])
def test_slow_storage_costs_what_saves_take_longer(save_seconds: float) -> None:
    """For an hour each save of every 10 steps takes 5 times as long."""
    slow = {"slowdown": 5, "lasts": 3600}
    run = {"save_seconds": save_seconds}
    _, told = outcome(met_by("slow_storage", failure=slow, run=run, cluster={"spares": 0}))
    saves = 3600.0 / (10.0 + 5 * save_seconds)
    allocated = 0.1 * 86_400.0
    expected = saves * 4 * save_seconds / allocated
    assert told["slow_share"] == pytest.approx(expected, rel=0.02)


def test_planned_maintenance_drains_nodes_when_it_begins_until_it_is_over() -> None:
    window = {"begins": "2026-01-01T00:30:00Z", "ends": "2026-01-01T01:10:00Z", "reason": "disk"}
    nodes = [f"n{i}" for i in (1, 2)]
    planned = {"at": "10m", "kind": "maintenance_planned", "nodes": nodes, **window}
    world = World(small(cluster={"nodes": 4}, events=[planned]))
    seen: list[tuple[list[str], set[str]]] = []

    def see() -> None:
        state = world.engine.state
        off = [node.id for node in state.nodes.values() if node.state is not NodeState.READY]
        seen.append((off, {worker.node for worker in state.workers_of("r")}))

    for minute in (29, 40, 75):
        world.engine.at(minute * 60.0, see)
    world.run()
    (before, first), (during, moved), (after, _) = seen
    assert (before, during, after) == ([], nodes, [])
    assert first & set(nodes)
    assert not moved & set(nodes)
    assert [r["remedy"] for r in report(world)["restarts"]] == ["move away"]
    assert not world.engine.refusals


def test_a_preempted_node_is_back_after_its_time() -> None:
    world = World(met_by("preemption", failure={"lasts": 1200}, cluster={"spares": 2}))
    draining: list[int] = []

    def count() -> None:
        nodes = world.engine.state.nodes.values()
        draining.append(sum(node.state is NodeState.DRAINING for node in nodes))

    for minute in (29, 31, 49, 51):
        world.engine.at(minute * 60.0, count)
    world.run()
    assert draining == [0, 1, 1, 0]


def test_effective_time_agrees_with_the_closed_form() -> None:
    """`(1 - r (u0 + dt/2)) / (1 + w/dt)` (Meta), for crashes of a run that saves every 100 s."""
    crashes = {"name": "crash", "does": "crash", "class": "network", "expected": 300}
    scenario = small(
        days=30,
        failures=[crashes],
        cluster={"spares": 0},
        spec={"checkpoint": {"directory": "/c", "every_steps": 100}},
    )
    _, told = outcome(scenario)
    assert told["interruptions"] == pytest.approx(300, rel=0.15)
    assert told["ettr"] == pytest.approx(told["expected_ettr"], abs=0.004)


def class_(expected: str) -> Callable[[dict[str, Any]], bool]:
    return lambda told: [row["class"] for row in told["restarts"]] == [expected]


@pytest.mark.parametrize(
    ("does", "fields", "story"),
    [
        ("crash", {"failure": {"class": "network"}}, class_("network")),
        ("gpu_fault", {}, class_("gpu_hardware")),
        ("node_loss", {}, class_("worker_lost")),
        ("hang", {}, class_("hang")),
        ("loss_spike", {}, class_("numerics")),
        ("nan", {}, class_("numerics")),
        ("corruption", {"failure": {"lasts": 5}}, class_("numerics")),
        ("preemption", {"failure": {"lasts": "1h"}}, class_("preemption")),
        ("loss_blip", {}, lambda told: told["restarts"] == []),
        ("straggler", {"failure": {"slowdown": 2}}, lambda told: told["restarts"] == []),
        ("slow_storage", {"failure": {"slowdown": 9}}, lambda told: told["restarts"] == []),
    ],
)
def test_each_failure_is_met_by_the_policy_of_production(
    does: str, fields: dict[str, Any], story: Callable[[dict[str, Any]], bool]
) -> None:
    scenario = met_by(does, **fields)
    # Wherever it falls, it must meet the run: all nodes are in use.
    scenario = scenario.model_copy(
        update={"cluster": scenario.cluster.model_copy(update={"spares": 0, "repair": 60.0})}
    )
    world, told = outcome(scenario)
    assert story(told), told["restarts"]
    assert told["runs"] == {"running": 1}
    assert not world.engine.refusals


def test_a_lost_node_is_replaced_by_a_spare_and_taken_back_when_repaired() -> None:
    world, told = outcome(met_by("node_loss", at=["20m", "40m"], cluster={"repair": 600.0}))
    assert told["runs"] == {"running": 1}
    assert all(host.up and host.listed for host in world.site.hosts.values())
    phases = told["recovery"]
    if told["restarts"]:
        assert phases["detect"]["p50"] >= world.scenario.recovery.contact_lost


def test_without_a_spare_the_run_waits_for_the_repair() -> None:
    world, told = outcome(met_by("node_loss", cluster={"spares": 0, "repair": 1800.0}, at=["20m"]))
    [run] = world.tally.runs.values()
    assert RunState.QUEUED in [state for _, state in run.states[1:]]
    assert told["runs"] == {"running": 1}
    assert told["gpu_days"]["queued"] * 86_400 / run.gpus >= 1700


def test_a_crash_resumes_from_memory_where_the_run_keeps_it_there() -> None:
    checkpoint = {"directory": "/c", "every_steps": 500, "memory_every_steps": 5}
    cluster = {"spares": 0}
    world, _ = outcome(met_by("crash", spec={"checkpoint": checkpoint}, cluster=cluster))
    [restart] = world.tally.restarts.values()
    assert restart.resumed_step is not None
    assert restart.best_step - restart.resumed_step < 5


def test_an_anomaly_goes_back_to_a_good_checkpoint_before_it() -> None:
    world, _ = outcome(met_by("corruption", failure={"lasts": 8}, cluster={"spares": 0}))
    [restart] = world.tally.restarts.values()
    onset = restart.best_step - 9
    assert restart.resumed_step is not None
    assert onset - 200 <= restart.resumed_step < onset


def test_a_slower_node_costs_what_it_is_slower() -> None:
    failure = {"slowdown": 2.0, "lasts": "30m"}
    _, told = outcome(met_by("straggler", failure=failure, cluster={"spares": 0}))
    allocated = sum(v for bucket, v in told["gpu_days"].items() if bucket != "queued")
    slow_seconds = told["slow_share"] * allocated * 86_400 / 16
    assert slow_seconds == pytest.approx(900, rel=0.1)


def test_events_of_people_reach_the_core() -> None:
    events = [
        {"at": "20m", "kind": "run_held", "run": "r", "reason": "look"},
        {"at": "30m", "kind": "run_released", "run": "r", "reason": "seen"},
        {"at": "40m", "kind": "restart_asked", "run": "r", "reason": "new image"},
        {"at": "50m", "kind": "run_cancelled", "run": "nobody", "reason": "mistyped"},
    ]
    world, told = outcome(small(events=events))
    [run] = world.tally.runs.values()
    assert RunState.HELD in [state for _, state in run.states]
    assert [row["cause"] for row in told["restarts"]] == ["operator"]
    assert told["refused"] == ["run_cancelled: cannot cancel nobody: it has ended"]


# the scenarios that are shipped


def test_crash_loop_stops_what_cannot_go_on() -> None:
    world, told = simulate("crash_loop")
    runs = {run["name"]: run for run in told["run_list"]}
    assert runs["user-error"]["state"] == "failed"
    assert "ValueError" in runs["user-error"]["reason"]
    assert runs["user-error"]["attempts"] == 2  # once more, to confirm that it is the code
    assert runs["bad-checkpoint"]["state"] == "succeeded"
    resumed = [
        restart.resumed_step
        for (run, _), restart in world.tally.restarts.items()
        if run == "bad-checkpoint"
    ]
    # The newest kills what loads it: here again, elsewhere, then the one before is taken.
    assert resumed == [550, 550, 550, 500]
    assert (runs["healthy"]["state"], runs["healthy"]["attempts"]) == ("succeeded", 1)


def test_switch_failure_freezes_until_someone_has_looked() -> None:
    world, told = simulate("switch_failure")
    [freeze] = told["freezes"]
    assert 12 * 3600 < freeze["begin_seconds"] < 12 * 3600 + 60
    assert freeze["end_seconds"] - freeze["begin_seconds"] == pytest.approx(2400)
    assert told["runs"] == {"running": 3}
    # Nobody was blamed for the network: what is cordoned had a faulty GPU.
    faults = told["failures"][1]["disturbed"]
    assert len(world.tally.cordoned) <= faults


def test_lemon_nodes_are_found() -> None:
    _, told = simulate("lemon_nodes")
    assert len(told["lemons"]["found"]) >= 3
    assert told["lemons"]["others_suspected"] <= 6
    assert told["ettr"] > 0.98


def test_fleet_ends_as_acme_did() -> None:
    _, told = simulate("fleet_1k_jobs", **{"populations.research.count": 200})
    over = sum(told["runs"].values())
    assert over == 240
    assert told["runs"]["failed"] / over == pytest.approx(0.35, abs=0.08)
    assert told["runs"]["succeeded"] / over == pytest.approx(0.52, abs=0.08)
    assert told["queue"]["count"] == 240
    assert 0.2 < told["node_use"]["busy_nodes_share"] < 0.9


def test_llama3_keeps_training_at_a_twentieth_of_its_size() -> None:
    """As many interruptions, each as long, on fewer nodes: the same ETTR at less cost."""
    _, told = simulate("llama3_16k", nodes=96, spares=8, days=13.5, failure_rate=0.25)
    assert told["expected_interruptions"] == pytest.approx(419 / 4)
    assert told["interruptions"] == pytest.approx(419 / 4, rel=0.25)
    assert told["ettr"] > 0.97
    assert told["ettr"] == pytest.approx(told["expected_ettr"], abs=0.006)
    assert sum(row["share"] for row in told["losses"]) == pytest.approx(1 - told["ettr"], abs=1e-6)


def test_deleted_checkpoints_leave_the_state() -> None:
    """Simulated agents confirm deletions; else a simulation of months would only grow."""
    world, _ = outcome(small())
    left = [c for c in world.engine.state.checkpoints.values() if c.deleted_at is not None]
    assert not [c for c in left if c.removed_at is None]
