"""What Pod objects say about their worker; see orchestrator/clusters/kubernetes/ends.py."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.clusters.kubernetes import ends
from orchestrator.clusters.kubernetes.nodes import OUT_OF_SERVICE


def node(ready: str, *taints: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "node-1"},
        "spec": {"taints": [{"key": key, "effect": "NoExecute"} for key in taints]},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


READY, SILENT = node("True"), node("Unknown")
DOWN = node("Unknown", OUT_OF_SERVICE)
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def pod(
    state: dict[str, Any] | None = None,
    *,
    phase: str = "Running",
    grace: int | None = None,
    node: str | None = "node-1",
    **status: Any,
) -> dict[str, Any]:
    statuses = [{"name": "worker", "state": state}] if state else []
    metadata: dict[str, Any] = {"name": "babysit-w1"}
    if grace is not None:
        metadata |= {"deletionTimestamp": "2026-01-01", "deletionGracePeriodSeconds": grace}
    return {
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "startTime": "t", "containerStatuses": statuses, **status},
    }


def ended(code: int, **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Error", **more}}


DISRUPTED = [
    {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "critical",
    }
]


@pytest.mark.parametrize(
    ("seen", "node", "reason"),
    [
        (pod(ended(0, reason="Completed"), phase="Succeeded"), READY, "agent exited with code 0"),
        (pod(ended(137), phase="Failed"), READY, "agent was killed by SIGKILL"),
        (pod(ended(2, message="a\nno space left"), phase="Failed"), READY,
         "agent exited with code 2: no space left"),
        (pod(ended(137, reason="OOMKilled"), phase="Failed"), READY,
         "agent was killed by SIGKILL: OOMKilled: the container exceeded its memory limit"),
        # The container is dead before the phase says so, and beside sidecars that live on.
        (pod(ended(1)), READY, "agent exited with code 1"),
        (pod(ended(137), phase="Failed", reason="Evicted", message="low on memory"), READY,
         "agent was killed by SIGKILL (Evicted: low on memory)"),
        (pod(ended(143), phase="Failed", conditions=DISRUPTED), READY,
         "agent was killed by SIGTERM (PreemptionByScheduler: critical)"),
        # A phase alone is no proof: an old kubelet writes it before it kills.
        (pod(phase="Failed", reason="Evicted", message="disk"), READY, None),
        (pod(phase="Failed", reason="Evicted", message="disk", grace=0), READY,
         "agent ended (Evicted: disk)"),
        (pod(phase="Failed", reason="OutOfcpu", message="no room", startTime=None), READY,
         "agent never started (OutOfcpu: no room)"),
        (pod(phase="Pending", node=None), None, None),
        (pod(phase="Pending", node=None, grace=0), None, "agent never started"),
        # Deletion by force removes objects, and nothing else.
        (pod(RUNNING), READY, None),
        (pod(RUNNING, grace=30), READY, None),
        (pod(RUNNING, grace=0), READY, None),
        (pod(RUNNING, grace=0), SILENT, "node lost: node-1 is not ready"),
        (pod(RUNNING), SILENT, None),
        (pod(RUNNING, grace=30), SILENT, None),
        (pod(RUNNING), DOWN, "node lost: node-1 is out of service"),
        (pod(RUNNING), None, "node lost: node-1 has left the cluster"),
    ],
)  # fmt: skip
def test_gone_or_not(seen: dict[str, Any], node: dict[str, Any] | None, reason: str | None) -> None:
    assert ends.gone(seen, node, known=True) == reason


def test_a_node_that_is_missing_from_an_old_list_proves_nothing() -> None:
    assert ends.gone(pod(RUNNING), None, known=False) is None


def test_a_phase_without_proof_has_the_pod_deleted_so_that_its_kubelet_says_more() -> None:
    assert ends.needs_confirmation(pod(phase="Failed", reason="Evicted"))
    assert not ends.needs_confirmation(pod(phase="Failed", reason="Evicted", grace=30))
    assert not ends.needs_confirmation(pod(ended(1), phase="Failed"))
    assert not ends.needs_confirmation(pod(RUNNING))


def test_a_worker_that_has_to_leave() -> None:
    assert ends.leaving(pod(RUNNING)) is None
    assert ends.leaving(pod(RUNNING, grace=30)) == "its Pod is being deleted"
    assert ends.leaving(pod(RUNNING, conditions=DISRUPTED)) == "PreemptionByScheduler: critical"


@pytest.mark.parametrize(
    ("reason", "message", "hopeless"),
    [
        ("ErrImagePull", "manifest unknown", True),
        ("ImagePullBackOff", "Back-off pulling image", False),
        ("ErrImagePull", "pull access denied, repository does not exist", True),
        ("ErrImagePull", "dial tcp: i/o timeout", False),
        ("ErrImagePull", "dial tcp: lookup registry.corp: no such host", False),
        ("InvalidImageName", "couldn't parse image", True),
        ("CreateContainerError", "no such device /dev/infiniband", False),
        ("CreateContainerError", "mkdir /mnt/data: permission denied", False),
        ("CreateContainerConfigError", "image will run as root", False),
        ("CreateContainerConfigError", 'secret "wandb" not found', True),
        ("RunContainerError", 'exec: "babysit-agent": executable file not found in $PATH', True),
        ("RunContainerError", 'stat "/opt/babysit/bin/babysit-agent": no such file', True),
        ("RunContainerError", 'exec: "nvidia-container-runtime-hook": not found', False),
    ],
)  # fmt: skip
def test_what_keeps_a_worker_from_starting(reason: str, message: str, hopeless: bool) -> None:
    found = ends.trouble(pod({"waiting": {"reason": reason, "message": message}}, phase="Pending"))
    broken = reason.startswith(("Create", "Run"))
    assert found == ends.Trouble(f"{reason}: {message}", hopeless, elsewhere=broken)
    creating = pod({"waiting": {"reason": "ContainerCreating"}}, phase="Pending")
    assert ends.trouble(creating) is None


def test_a_pod_that_does_not_fit_its_node() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    words = "0/2 nodes are available: 2 Insufficient cpu."
    found = ends.trouble(
        pod(phase="Pending", node=None, conditions=[{**condition, "message": words}])
    )
    assert found == ends.Trouble(f"unschedulable: {words}", elsewhere=True)
