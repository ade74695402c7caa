"""Why a run waits, and what would become of one: what is said must be so."""

from __future__ import annotations

import datetime as dt

import pytest

from orchestrator.core.messages.events import MaintenancePlanned, RunHeld, RunReleased
from orchestrator.core.model.states import RunState
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from orchestrator.core.scheduling import Pending, Plan, Wait
from orchestrator.core.views import explain as explaining
from orchestrator.core.views.dry_run import try_out
from orchestrator.core.views.explain import explain
from tests.gpu_cluster import cluster, gpu_spec, start

GRACE = dt.timedelta(seconds=GRACE_SECONDS)


def test_each_waiting_run_is_told_which_run_leaves_for_it() -> None:
    """Two preempt at once: each hears of its own victims, and when they will have left."""
    world = cluster(4)
    start(world, "one", priority="low")
    start(world, "two", priority="low")
    world.slow = True
    world.submit(gpu_spec("first", priority="high"), "first")
    world.submit(gpu_spec("second", priority="high"), "second")
    told = {}
    for run in ("first", "second"):
        said = explain(world.state, run, world.now)
        assert said.underlying == Pending.PREEMPTING
        assert said.starts_at == world.now + GRACE
        assert "They have 30 s to save and stop." in said.sentences
        (told[run],) = [
            s for s in said.sentences if s.endswith("saves and leaves its nodes to it.")
        ]
        assert said.unblock == f"{told[run].split()[0]} has left"
    assert sorted(sentence.split()[0] for sentence in told.values()) == ["one", "two"]


def test_a_dry_run_says_when_others_will_have_left() -> None:
    world = cluster(2)
    start(world, "low", priority="low")
    foreseen = try_out(world.state, gpu_spec("high", priority="high"), world.now)
    assert foreseen.starts_at == world.now + GRACE
    assert foreseen.sentences[-1] == "They would have 30 s to save."


@pytest.mark.parametrize(
    ("limit", "shorter"),
    [("5h", "or with a shorter `max_runtime`"), (None, "or with a `max_runtime`")],
)
def test_maintenance_that_keeps_a_run_waiting_is_named(
    limit: str | None, shorter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both nodes are free, but one is maintained before the run would end."""
    world = cluster(2)
    soon, later = world.now + dt.timedelta(minutes=30), world.now + dt.timedelta(hours=30)
    for node, begins in (("node-0", soon), ("node-1", later)):
        ends = begins + dt.timedelta(hours=1)
        world.do(
            world.event(
                MaintenancePlanned, nodes=(node,), begins=begins, ends=ends, reason="new switch"
            )
        )
    world.submit(gpu_spec("run-1", nodes=2, max_runtime=limit), "run-1")
    assert world.run().state is RunState.QUEUED
    wait = Wait(run="run-1", why=Pending.MAINTENANCE, place=1, missing=2, fitting=1)
    monkeypatch.setattr(
        explaining.worker_placement, "current_plan", lambda *_: Plan(waits={"run-1": wait})
    )
    said = explain(world.state, "run-1", world.now)
    assert said.underlying == "maintenance"
    assert "Maintenance of the free nodes begins before it would end." in said.sentences
    assert said.unblock.startswith("the maintenance of node-0 is over or is called off with")
    assert shorter in said.unblock


def test_a_run_that_waits_under_a_hold_hears_what_else_it_waits_for() -> None:
    world = cluster(3)
    start(world, "busy", nodes=2)
    world.do(world.event(RunHeld, run=None, reason="network"))
    world.submit(gpu_spec("first", nodes=1), "first")
    world.submit(gpu_spec("second", nodes=2), "second")
    held = explain(world.state, "first", world.now)
    assert held.underlying == "held"
    assert held.unblock == "babysit release"
    assert held.sentences[-1] == "It has what it needs to start on the release."
    said = explain(world.state, "second", world.now).sentences
    assert said[2] == "Without the hold it would wait:"
    assert "second needs 2 nodes with 8 GPUs, 1 CPUs each; 0 are free and fit." in said
    busy = explain(world.state, "busy", world.now).sentences
    assert busy[1:] == ["Monitoring continues."], "it has its nodes"


def test_a_dry_run_while_everything_is_held_looks_past_the_hold() -> None:
    """Nothing starts, as it says; and it does not promise nodes that others wait for already."""
    world = cluster(3)
    start(world, "busy", nodes=1)
    world.do(world.event(RunHeld, run=None, reason="network"))
    alone = try_out(world.state, gpu_spec("new", nodes=2), world.now)
    assert (alone.starts, alone.underlying, alone.starts_at) == (False, "held", None)
    assert alone.nodes == ["node-1", "node-2"]
    assert "Everything is held, so nothing starts before `babysit release`" in alone.sentences[0]
    assert alone.sentences[1] == "new would then start, on node-1, node-2."

    world.submit(gpu_spec("before", nodes=2), "before")
    behind = try_out(world.state, gpu_spec("new", nodes=2), world.now)
    assert (behind.starts, behind.nodes, behind.ahead) == (False, [], [])
    assert behind.sentences[1].startswith(
        "new would then wait for 2 nodes: not enough free nodes fit."
    )
    world.do(world.event(RunReleased, run=None))
    assert world.run("before").state is RunState.STARTING


def test_of_a_run_that_trains_its_places_are_told() -> None:
    """And no step: the core hears of steps only now and then."""
    world = cluster(2)
    start(world, "run")
    sentence = explain(world.state, "run", world.now).sentences[-1]
    assert sentence == "Attempt 1 is running: ranks 0 on node-0, ranks 1 on node-1."
