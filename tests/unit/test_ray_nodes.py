"""How nodes of Ray become nodes of the inventory."""

from __future__ import annotations

import pytest

from orchestrator.clusters.errors import unknown_node
from orchestrator.clusters.ray.ends import no_room, words
from orchestrator.clusters.ray.facts import PendingNode, RayNode, Snapshot
from orchestrator.clusters.ray.nodes import NodeNames, chosen, inventory
from orchestrator.settings import Settings

GIB = 2**30


def node(identity: str, name: str, **more: object) -> RayNode:
    total = {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * GIB, f"node:{name}": 1.0}
    made = RayNode(id=identity, name=name, host=name, total=total, others={}, labels={})
    return made._replace(**more)


def named(*nodes: RayNode) -> list[str]:
    names = NodeNames()
    names.update(nodes)
    return [names.of(each.id) for each in nodes]


def test_a_node_has_its_own_name_and_nodes_that_share_one_are_told_apart() -> None:
    assert named(node("a" * 56, "10.0.0.1"), node("b" * 56, "10.0.0.2")) == ["10.0.0.1", "10.0.0.2"]
    assert named(node("a" * 56, "vm"), node("b" * 56, "vm")) == ["vm-aaaaaaaa", "vm-bbbbbbbb"]


def test_a_node_keeps_its_name_while_it_lives_and_leaves_it_to_its_successor() -> None:
    names = NodeNames()
    first, second = node("b" * 56, "10.0.0.1"), node("a" * 56, "10.0.0.1")
    names.update((first,))
    names.update((first, second))  # a raylet that starts again before Ray knows that it was gone
    assert names.all() == ["10.0.0.1", "10.0.0.1-aaaaaaaa"]
    names.update((second,))
    assert names.find("10.0.0.1-aaaaaaaa") == second.id
    names.update(())
    names.update((second,))
    assert names.find("10.0.0.1") == second.id


def test_other_jobs_use_is_not_offered() -> None:
    others = {"CPU": 0.3, "GPU": 0.5, "memory": GIB + 1}
    seen = Snapshot((node("a" * 56, "n", others=others),))
    names = NodeNames()
    names.update(seen.nodes)
    (found,) = inventory(seen, names, {})
    assert (found.cpus, found.gpus, found.memory) == (7.5, 3, 63 * GIB - 256 * 2**20)
    assert found.used_by_others == "1 GPU, 0.5 CPUs, 1.2 GiB"


def test_labels_say_where_a_node_is() -> None:
    labels = {"ray.io/node-id": "x", "ray.io/availability-zone": "a", "rack": "r7"}
    seen = Snapshot((node("a" * 56, "n", labels=labels),))
    names = NodeNames()
    names.update(seen.nodes)
    (found,) = inventory(seen, names, {"zone": "ray.io/availability-zone"})
    assert found.labels == {"zone": "a", "rack": "r7"}
    assert chosen(seen, {"rack": "r7"}) == seen
    assert chosen(seen, {"rack": "r8"}).nodes == ()


def test_a_drained_node_and_a_pending_one_take_no_work_and_say_why() -> None:
    seen = Snapshot(
        (node("a" * 56, "n", deadline=1_796_040_000_000),),
        (PendingNode("gpu-1", "gpu", "setting-up", {"GPU": 8.0, "CPU": 96.0}),),
    )
    names = NodeNames()
    names.update(seen.nodes)
    drained, pending = inventory(seen, names, {})
    assert (drained.state, drained.reason) == (
        "draining",
        "Ray drains the node, and ends it at 2026-11-30 12:00:00 UTC",
    )
    assert (pending.id, pending.state, pending.gpus) == ("pending-gpu-1", "cordoned", 8)
    assert pending.reason == "pending: Ray's autoscaler has ordered it (gpu): setting-up"


def test_raylets_of_one_machine_share_its_host() -> None:
    one, two = node("a" * 56, "n1", host="vm"), node("b" * 56, "n2", host="vm")
    seen = Snapshot((one, two, node("c" * 56, "n3")))
    names = NodeNames()
    names.update(seen.nodes)
    assert [each.host for each in inventory(seen, names, {})] == ["vm", "vm", ""]


def test_a_place_that_others_have_taken_is_told_with_figures() -> None:
    busy = node("a" * 56, "n", others={"GPU": 3.0, "memory": 60.0 * GIB})
    assert no_room({"GPU": 1.0, "CPU": 8.0, "memory": 0.0}, busy) == ""
    assert no_room({"GPU": 2.0, "CPU": 8.0, "memory": 8.0 * GIB}, busy) == (
        "other jobs of the Ray cluster use n: 1 of 4 GPU left, 2 wanted;"
        " 4.0 GiB of 64.0 GiB memory left, 8.0 GiB wanted"
    )


def test_words_of_ray_are_kept_short() -> None:
    said = (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
        " Worker exit detail: End of file. Some common causes include: (1) the OOM killer"
    )
    assert words(said) == "Worker exit type: SYSTEM_ERROR Worker exit detail: End of file."
    assert words("") == "no reason is given"


@pytest.mark.parametrize("name", ["ray_topology", "kubernetes_topology"])
@pytest.mark.parametrize("value", ["row=example.org/row", "rack", "rack="])
def test_a_topology_that_names_no_level_or_label_is_refused(name: str, value: str) -> None:
    given: dict[str, str] = {name: f"zone=example.org/zone, {value}"}
    with pytest.raises(ValueError, match=f"{value}: expected LEVEL=LABEL"):
        Settings.model_validate(given)


def test_an_unknown_node_is_refused_with_the_first_names_there_are() -> None:
    names = [f"node-{number}" for number in range(10, 40)]
    error = unknown_node("rack-7", "w1", names)
    assert str(error) == (
        f"unknown node rack-7; this cluster has {', '.join(names[:20])} and 10 more"
    )
    assert (error.node, error.worker) == ("rack-7", "w1")
