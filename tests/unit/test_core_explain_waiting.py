"""What a waiting run is told: recorded decisions, who holds what is missing, and its true place."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from orchestrator.core.messages.events import CapacityChanged, NodeChanged, NodeInfo, QueueChanged
from orchestrator.core.model.away import AWAY_SECONDS
from orchestrator.core.scheduling import Quota, shortage
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.views.explain import explain
from orchestrator.core.views.waiting import roughly
from tests.gpu_cluster import cluster, gpu_spec, nodes_of, start
from tests.unit.test_core_absence import Hung
from tests.unit.test_scheduling_plan import demand
from tests.world import World, spec


def words(world: World, run: str) -> str:
    return " ".join(explain(world.state, run, world.now).sentences)


def test_a_victim_that_is_late_is_told_as_late() -> None:
    world = Hung(nodes=0)
    world.do(world.event(CapacityChanged, nodes=(NodeInfo(id="node-0", gpus=8, cpus=8),)))
    start(world, "low", nodes=1, priority="low")
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    world.settle()
    assert "They have 30 s to save and stop." in words(world, "high")
    world.advance(75)
    said = explain(world.state, "high", world.now)
    assert "They had 30 s to save and stop, and are 45 s late." in said.sentences
    assert said.starts_at is None


def test_an_eviction_that_is_not_recorded_is_not_told_as_under_way() -> None:
    world = cluster(1)
    start(world, "low", nodes=1, priority="low")
    world.state.put(dataclasses.replace(world.state.fleet, hold="stop"))
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    world.state.put(dataclasses.replace(world.state.fleet, hold=None))
    assert "The next scheduling pass has low save and leave nodes to it." in words(world, "high")
    assert "low saves and leaves" not in words(world, "high")


def test_a_queue_that_cannot_have_its_own_quota_back_is_told_who_has_it() -> None:
    quotas = Quotas([Quota(name=name, gpus=8, cohort="c") for name in ("a", "b")])
    quotas.charge("b", 16)
    assert shortage.quota_detail(quotas, demand("own", queue="a")) == (
        "queue a uses 0 of 8 GPUs; it wants 8 more, which are its own and lent to b (8)"
    )
    quotas.charge("b", -16)
    quotas.charge("a", 8)
    assert "lent" not in shortage.quota_detail(quotas, demand("more", queue="a"))


def test_the_queues_that_have_borrowed_the_most_are_named_and_the_others_counted() -> None:
    quotas = Quotas([Quota(name=name, gpus=8, cohort="c") for name in "abcdefghij"])
    for queue, gpus in {"g": 14, "f": 10, "e": 10, "c": 9, "b": 10}.items():
        quotas.charge(queue, gpus)
    quotas.charge("d", 70)
    said = shortage.quota_detail(quotas, demand("own", queue="a"))
    assert said.endswith("lent to d (62), g (6), b (2), e (2) and 2 more")
    quotas.charge("d", -70)
    assert "d (" not in shortage.quota_detail(quotas, demand("own", queue="a"))


def test_a_run_that_must_borrow_is_told_which_queue_has_to_end() -> None:
    world = cluster(4)
    for name in ("a", "b"):
        world.do(world.event(QueueChanged, quota=Quota(name=name, gpus=16, cohort="c")))
    start(world, "theirs", nodes=2, queue="b")
    world.submit(gpu_spec("wide", nodes=3, queue="a"), "wide")
    said = explain(world.state, "wide", world.now)
    assert said.unblock.startswith("runs of queue b end")


def test_the_place_counts_runs_that_compete_and_stays_readable() -> None:
    world = World(nodes=0)
    kinds = [NodeInfo(id="small", gpus=8, cpus=8), NodeInfo(id="large", gpus=16, cpus=8)]
    world.do(world.event(CapacityChanged, nodes=tuple(kinds)))
    start(world, "busy", nodes=1)
    wide = {"nodes": 1, "gpus_per_node": 16}
    world.submit(spec("first-large", resources=wide), "first-large")
    for i in range(40):
        world.submit(spec(f"large-{i}", resources=wide), f"large-{i}")
    world.do(world.event(CapacityChanged, nodes=(kinds[0],)))
    world.do(world.event(CapacityChanged, nodes=tuple(kinds)))
    line = next(s for s in explain(world.state, "large-39", world.now).sentences if "number" in s)
    assert len(line) < 100
    assert "others" in line


def test_runs_that_wait_for_other_nodes_are_not_ahead() -> None:
    world = World(nodes=0)
    kinds = [
        NodeInfo(id="gpu", gpus=8, cpus=8),
        NodeInfo(id="cpu", gpus=0, cpus=64),
    ]
    world.do(world.event(CapacityChanged, nodes=tuple(kinds)))
    start(world, "busy", nodes=1)
    cpus = {"nodes": 1, "gpus_per_node": 0, "cpus_per_node": 64}
    world.submit(spec("cpu-busy", resources=cpus), "cpu-busy")
    world.submit(gpu_spec("gpu-waits", nodes=1), "gpu-waits")
    world.submit(spec("cpu-waits", resources=cpus), "cpu-waits")
    said = explain(world.state, "cpu-waits", world.now)
    assert (said.place, said.ahead) == (1, [])


def test_an_absent_node_and_a_dropped_reservation_are_told() -> None:
    world = cluster(2)
    start(world, "busy", nodes=1)
    world.submit(gpu_spec("gang", nodes=2), "gang")
    assert "2 nodes are reserved for it." in words(world, "gang")
    (other,) = {"node-0", "node-1"} - nodes_of(world, "busy")
    world.do(world.event(NodeChanged, node=other, state="draining", reason="bios", actor="ann"))
    assert f"{other} (draining: bios) is expected back" in words(world, "gang")
    world.advance(AWAY_SECONDS + 600)
    said = explain(world.state, "gang", world.now)
    assert said.underlying == "too_large"
    assert said.place is None
    assert "It is not in the queue: it holds nobody up." in said.sentences
    assert "Its reservation of 2 nodes was dropped 10 min ago." in said.sentences
    dropped = [i for _, _, ins in world.journal for i in ins if "is dropped" in i.reason]
    assert len(dropped) == 1


def test_a_rigid_run_is_not_said_to_release_nodes() -> None:
    world = cluster(1)
    start(world, "rigid", nodes=1)
    world.submit(gpu_spec("waits", nodes=1), "waits")
    assert explain(world.state, "waits", world.now).unblock == "rigid ends"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (40, "40 s"),
        (720, "12 min"),
        (3 * 3600, "3 h"),
        (11_520, "3 h 12 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_times_are_told_in_days_and_hours(seconds: float, said: str) -> None:
    assert roughly(seconds) == said


def test_a_start_that_slips_is_told() -> None:
    world = cluster(1)
    start(world, "busy", nodes=1, max_runtime="3h")
    world.submit(gpu_spec("waits", nodes=1), "waits")
    claim = world.run("waits").claim
    assert claim is not None
    assert claim.promised == claim.until
    early = dataclasses.replace(claim, promised=world.now + dt.timedelta(hours=1))
    world.state.put(dataclasses.replace(world.run("waits"), claim=early))
    assert "later than first expected" in words(world, "waits")
