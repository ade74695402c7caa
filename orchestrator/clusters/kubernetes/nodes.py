"""Reads nodes of the cluster from Node objects, and from the Pods of others on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from orchestrator.clusters import other_use
from orchestrator.clusters.kubernetes import names, quantities
from orchestrator.clusters.kubernetes.merge import Json
from orchestrator.core.messages.events import NodeInfo

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Taint by which a person or the cloud says that a node is down for certain."""
SHUTDOWN = "node.cloudprovider.kubernetes.io/shutdown"
"""Taint by which the cloud's controller says that the machine is switched off."""
CPU_STEP, MEMORY_STEP = 0.5, 256 * 2**20
"""Capacity is rounded down to these: small Pods of others come and go, and each change of the
inventory is an event."""
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_OWN_WORDS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""Taints that Kubernetes derives from conditions and from `unschedulable`, told by those."""

State = Literal["ready", "cordoned", "draining"]


class Used(NamedTuple):
    """Requests of the Pods of others on a node."""

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Settings of nodes; see :mod:`orchestrator.kubernetes_settings`."""

    instance: str = "babysit"
    gpu_resources: tuple[str, ...] = ("nvidia.com/gpu",)
    topology: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Level -> label."""
    bad_conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Type of a condition -> the status that is bad."""
    termination_taints: frozenset[str] = frozenset()
    tolerations: tuple[Json, ...] = ()


def in_use(node: Mapping[str, Any], settings: NodeSettings) -> bool:
    """True for nodes of the inventory: nodes of the control plane are not, unless tolerated."""
    return not any(
        taint["key"] in _CONTROL_PLANE and not _tolerated(taint, settings.tolerations)
        for taint in _taints(node)
        if taint.get("effect") != "PreferNoSchedule"
    )


def node_info(node: Mapping[str, Any], used: Used, settings: NodeSettings) -> NodeInfo:
    """The node as the scheduler sees it: what it can allocate, less what others' Pods request."""
    can = node.get("status", {}).get("allocatable", {})
    total = Used(
        cpus=quantities.parse(can.get("cpu", 0)),
        memory=int(quantities.parse(can.get("memory", 0))),
        gpus=sum(int(quantities.parse(can.get(name, 0))) for name in settings.gpu_resources),
    )
    whole, left = _rounded(total), _rounded(plus(total, used, -1))
    labels = node["metadata"].get("labels") or {}
    usable, why = state(node, settings)
    return NodeInfo(
        id=node["metadata"]["name"],
        gpus=left.gpus,
        cpus=left.cpus,
        memory=left.memory,
        used_by_others=other_use.in_words(
            whole.gpus - left.gpus, whole.cpus - left.cpus, whole.memory - left.memory
        ),
        labels={
            level: labels[label] for level, label in settings.topology.items() if label in labels
        },
        state=usable,
        reason="" if usable == "ready" else why,
    )


def _rounded(size: Used) -> Used:
    """The size in whole steps; a negative one is nothing."""
    return Used(
        cpus=math.floor(max(0.0, size.cpus) / CPU_STEP) * CPU_STEP,
        memory=max(0, size.memory) // MEMORY_STEP * MEMORY_STEP,
        gpus=max(0, size.gpus),
    )


def gpu_resource(node: Mapping[str, Any], settings: NodeSettings) -> str:
    """The resource that counts the GPUs of this node; the first of the settings if it has none."""
    can = node.get("status", {}).get("allocatable", {})
    return next((name for name in settings.gpu_resources if name in can), settings.gpu_resources[0])


def requests(pod: Mapping[str, Any], settings: NodeSettings) -> Used:
    """Resources of a Pod: of all its containers, or of its largest init container.

    Sidecars (init containers that restart always) run beside both, and are added.
    """
    spec = pod.get("spec", {})
    initial = spec.get("initContainers") or ()
    sidecars = [each for each in initial if each.get("restartPolicy") == "Always"]
    beside = [*(spec.get("containers") or ()), *sidecars]
    first = [each for each in initial if each.get("restartPolicy") != "Always"]
    overhead = spec.get("overhead") or {}

    def most(name: str) -> float:
        running = sum(_request(each, name) for each in beside)
        starting = max((_request(each, name) for each in first), default=0.0)
        return max(running, starting) + quantities.parse(overhead.get(name, 0))

    return Used(
        cpus=most("cpu"),
        memory=int(most("memory")),
        gpus=int(sum(most(name) for name in settings.gpu_resources)),
    )


def plus(used: Used, more: Used, sign: int = 1) -> Used:
    """The sum, or with sign -1 the difference."""
    cpus = round(used.cpus + sign * more.cpus, 6)  # no dust of binary fractions is left over
    return Used(cpus, used.memory + sign * more.memory, used.gpus + sign * more.gpus)


def state(node: Mapping[str, Any], settings: NodeSettings) -> tuple[State, str]:
    """The state in which the cluster wants the node, and the cluster's reason for it.

    A cordon that babysit has set itself does not count: the control plane has its reason.
    """
    for taint in _taints(node):
        if taint["key"] in settings.termination_taints:
            return "draining", f"the node is about to go: taint {_words(taint)}"
    if is_down(node):
        return "cordoned", "the node is out of service"
    ready = _condition(node, "Ready")
    if ready.get("status") != "True":
        return "cordoned", f"NotReady: {_why(ready, 'its kubelet has not reported')}"
    for kind, bad in settings.bad_conditions.items():
        condition = _condition(node, kind)
        if condition.get("status") == bad:
            return "cordoned", f"{kind}={bad}: {_why(condition, 'no message')}"
    if node.get("spec", {}).get("unschedulable") and not cordoned_by_us(node, settings.instance):
        return "cordoned", "unschedulable: somebody has cordoned it in Kubernetes"
    for taint in _taints(node):
        if (
            taint.get("effect") in {"NoSchedule", "NoExecute"}
            and not taint["key"].startswith(_OWN_WORDS)
            and not _tolerated(taint, settings.tolerations)
        ):
            return "cordoned", f"taint {_words(taint)}, which Pods of runs do not tolerate"
    return "ready", "Kubernetes lets it take work"


def is_ready(node: Mapping[str, Any] | None) -> bool:
    """True if the node's kubelet reports."""
    return node is not None and _condition(node, "Ready").get("status") == "True"


def is_down(node: Mapping[str, Any]) -> bool:
    """True if a person or the cloud says for certain that nothing runs on the node."""
    return any(taint["key"] in {OUT_OF_SERVICE, SHUTDOWN} for taint in _taints(node)) and not (
        is_ready(node)
    )


def cordoned_by_us(node: Mapping[str, Any], instance: str) -> bool:
    """True if this installation has made the node unschedulable."""
    return (node["metadata"].get("annotations") or {}).get(names.CORDONED) == instance


def cordon_patch(instance: str, reason: str) -> Json:
    """The patch that makes a node unschedulable, and says why and who did it."""
    return {
        "metadata": {"annotations": {names.CORDONED: instance, names.REASON: reason}},
        "spec": {"unschedulable": True},
    }


def uncordon_patch() -> Json:
    """The patch that takes back what :func:`cordon_patch` did."""
    return {
        "metadata": {"annotations": {names.CORDONED: None, names.REASON: None}},
        "spec": {"unschedulable": None},
    }


def _taints(node: Mapping[str, Any]) -> list[Json]:
    return list(node.get("spec", {}).get("taints") or ())


def _tolerated(taint: Mapping[str, Any], tolerations: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        each.get("key") in {None, "", taint["key"]}
        and each.get("effect") in {None, "", taint.get("effect")}
        and (
            each.get("operator") == "Exists" or (each.get("value") or "") == taint.get("value", "")
        )
        for each in tolerations
    )


def _condition(node: Mapping[str, Any], kind: str) -> Json:
    for condition in node.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def _why(condition: Mapping[str, Any], otherwise: str) -> str:
    said = (condition.get("reason"), condition.get("message"))
    return ": ".join(text for text in said if text) or otherwise


def _words(taint: Mapping[str, Any]) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint.get('effect', '')}"


def _request(container: Mapping[str, Any], name: str) -> float:
    resources = container.get("resources") or {}
    return quantities.parse(
        (resources.get("requests") or {}).get(name, (resources.get("limits") or {}).get(name, 0))
    )
