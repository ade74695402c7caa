"""The link between two nodes of a real API server: measured by two Pods of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.control_plane import Servers, until
from tests.kubernetes import servers as kubernetes
from tests.kubernetes.bed import Bed
from tests.kubernetes.plane import kubernetes_plane

pytestmark = pytest.mark.slow


def test_two_pods_measure_the_link_between_their_nodes(
    servers: Servers, kubernetes_servers: kubernetes.Servers, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    with (
        Bed(kubernetes_servers, tmp_path / "shared", nodes=2) as bed,
        kubernetes_plane(servers, bed, tmp_path / "home") as plane,
    ):
        until(lambda: len(plane.ask("nodes", "ls")) == 2, "the nodes are known", 60)
        rows = {
            row["name"]: row for row in plane.ask("nodes", "check", "node-1", "--check", "link")
        }
        assert set(rows) == {"link-rate", "link-latency"}
        assert all(row["verdict"] == "passed" and row["figure"] > 0 for row in rows.values())
        assert rows["link-rate"]["peer"] == "node-2"
        other = {row["name"]: row for row in plane.ask("nodes", "check", "node-2", "--last")}
        assert other["link-rate"]["figure"] == rows["link-rate"]["figure"]
        assert other["link-rate"]["peer"] == "node-1"
        until(lambda: not bed.api.get(bed.path("Pod"))["items"], "both Pods are gone", 120)
