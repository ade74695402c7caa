"""A node of a real API server breaks and is repaired: its checks run in a Pod before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.control_plane import ControlPlane, Servers, until
from tests.kubernetes import servers as kubernetes
from tests.kubernetes.api import Object
from tests.kubernetes.bed import Bed
from tests.kubernetes.plane import kubernetes_plane
from tests.kubernetes.pod_run import condition

pytestmark = pytest.mark.slow


def report(bed: Bed, *, broken: bool) -> None:
    """What node-problem-detector writes into the Node."""
    found = condition("KernelDeadlock", broken, "DockerHung" if broken else "KernelHasNoDeadlock")
    body = {"status": {"conditions": [found]}}
    path = f"{bed.nodes['node-1'].path}/status"
    bed.api.patch(path, body, kind="application/strategic-merge-patch+json")


def node(plane: ControlPlane) -> dict[str, Any]:
    (found,) = [each for each in plane.ask("nodes", "ls") if each["id"] == "node-1"]
    return dict(found)


def pods(bed: Bed) -> list[Object]:
    return list(bed.api.get(bed.path("Pod"))["items"])


def test_a_repaired_node_passes_its_checks_in_a_pod_before_it_is_used(
    servers: Servers, kubernetes_servers: kubernetes.Servers, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    with (
        Bed(kubernetes_servers, tmp_path / "shared", nodes=1) as bed,
        kubernetes_plane(servers, bed, tmp_path / "home", check_idle_hours=1000) as plane,
    ):
        report(bed, broken=True)
        until(lambda: node(plane)["state"] == "cordoned", "the node is kept away", 60)
        assert "KernelDeadlock" in node(plane)["reason"]
        # The checks of an idle node that nobody has checked yet may have begun before.
        until(lambda: not pods(bed), "no check is under way", 120)
        report(bed, broken=False)
        (pod,) = until(lambda: pods(bed), "a Pod checks the node", 60)
        assert node(plane)["state"] == "cordoned"
        assert "check-node-1" in pod["metadata"]["annotations"]["babysit/worker"]
        until(lambda: node(plane)["state"] == "ready", "the node is taken back", 180)
        assert "its checks passed" in node(plane)["reason"]
        until(lambda: not pods(bed), "the Pod is gone", 60)
