"""What Node objects and the Pods of others say; see orchestrator/clusters/kubernetes/nodes.py."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.clusters.kubernetes import nodes, quantities
from orchestrator.clusters.kubernetes.nodes import Used
from orchestrator.clusters.kubernetes.settings import node_settings
from orchestrator.kubernetes_settings import TERMINATION_TAINTS
from orchestrator.settings import Settings

SETTINGS = node_settings(
    Settings(
        kubernetes_gpu_resource="nvidia.com/gpu,amd.com/gpu",
        kubernetes_topology="zone=topology.kubernetes.io/zone,rack=example.org/rack",
        kubernetes_bad_conditions="KernelDeadlock,AcceleratedHardwareReady=False",
    )
)


def node(*taints: dict[str, str], ready: str = "True", **fields: Any) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": ready, "reason": "KubeletNotReady", "message": "PLEG"},
        *fields.pop("conditions", ()),
    ]
    return {
        "metadata": {
            "name": "node-1",
            "labels": {"topology.kubernetes.io/zone": "z1", "example.org/rack": "r7", "x": "y"},
            "annotations": fields.pop("annotations", {}),
        },
        "spec": {"taints": list(taints), **fields},
        "status": {
            "allocatable": {"cpu": "95900m", "memory": "1056Gi", "amd.com/gpu": "8"},
            "conditions": conditions,
        },
    }


def pod(*containers: dict[str, str], first: dict[str, str] | None = None) -> dict[str, Any]:
    made = [{"resources": {"requests": each}} for each in containers]
    initial = [{"resources": {"requests": first}}] if first else []
    return {"spec": {"containers": made, "initContainers": initial}}


def test_a_node_offers_what_the_pods_of_others_leave() -> None:
    used = nodes.plus(
        nodes.requests(pod({"cpu": "250m", "memory": "1Gi"}, {"cpu": "1"}), SETTINGS),
        nodes.requests(pod({"cpu": "500m"}, first={"cpu": "2", "amd.com/gpu": "1"}), SETTINGS),
    )
    assert used == Used(3.25, 2**30, 1)
    info = nodes.node_info(node(), used, SETTINGS)
    assert (info.cpus, info.memory, info.gpus) == (92.5, 1055 * 2**30, 7)
    assert info.used_by_others == "1 GPU, 3 CPUs, 1.0 GiB"
    assert nodes.node_info(node(), Used(), SETTINGS).used_by_others == ""
    assert info.labels == {"zone": "z1", "rack": "r7"}
    assert nodes.gpu_resource(node(), SETTINGS) == "amd.com/gpu"
    assert nodes.plus(used, used, -1) == Used()


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        (node(), "ready", "Kubernetes"),
        (node(ready="Unknown"), "cordoned", "NotReady: KubeletNotReady: PLEG"),
        (node(unschedulable=True), "cordoned", "somebody has cordoned"),
        (
            node(conditions=[{"type": "KernelDeadlock", "status": "True", "message": "hung"}]),
            "cordoned",
            "KernelDeadlock=True: hung",
        ),
        (
            node(conditions=[{"type": "AcceleratedHardwareReady", "status": "False"}]),
            "cordoned",
            "AcceleratedHardwareReady=False",
        ),
        (node({"key": "team", "value": "b", "effect": "NoSchedule"}), "cordoned", "taint team=b"),
        (node({"key": "nvidia.com/gpu", "effect": "NoSchedule"}), "ready", ""),
        (node({"key": "team", "effect": "PreferNoSchedule"}), "ready", ""),
        (node({"key": nodes.OUT_OF_SERVICE, "effect": "NoExecute"}, ready="Unknown"), "cordoned",
         "out of service"),
        *[
            (node({"key": key, "effect": "NoSchedule"}), "draining", f"taint {key}")
            for key in TERMINATION_TAINTS
        ],
    ],
)  # fmt: skip
def test_the_clusters_word_about_a_node(seen: dict[str, Any], state: str, words: str) -> None:
    said, why = nodes.state(seen, SETTINGS)
    assert said == state
    assert words in why


def test_a_cordon_of_ours_is_not_taken_for_that_of_others() -> None:
    patch = nodes.cordon_patch("babysit", "fan")
    ours = node(unschedulable=True, annotations=patch["metadata"]["annotations"])
    assert nodes.state(ours, SETTINGS)[0] == "ready"
    assert nodes.cordoned_by_us(ours, "babysit")
    assert not nodes.cordoned_by_us(ours, "another")


def test_nodes_of_the_control_plane_are_no_inventory() -> None:
    seen = node({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"})
    assert not nodes.in_use(seen, SETTINGS)
    assert nodes.in_use(node(), SETTINGS)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("4", 4), ("16Gi", 16 * 2**30), ("1e3", 1000), ("1.5G", 1.5e9), (".5", 0.5)],
)
def test_quantities(text: str, number: float) -> None:
    assert quantities.parse(text) == number


def test_quantities_that_are_none() -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantities.parse("4 cores")
    assert [quantities.of_cpus(cpus) for cpus in (1, 0.5, 1.2345)] == ["1", "500m", "1235m"]
