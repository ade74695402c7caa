"""A run on a real Ray cluster whose node is about to end."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray", exc_type=ImportError)

from tests.acceptance.test_ray import PATIENCE, at_attempt, finish, make_job, whole
from tests.control_plane import Servers
from tests.prometheus import free_port
from tests.ray.commands import Nodes
from tests.ray.plane import ray_plane


@whole
@pytest.mark.timeout(1200)
def test_a_run_saves_and_leaves_a_node_that_is_about_to_end(
    servers: Servers, tmp_path: Path
) -> None:
    """SIGTERM to `ray start --block`, as Kubernetes sends it to a Pod: Ray drains the node."""
    patience = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{PATIENCE}"}
    with Nodes(free_port(), patience) as nodes:
        nodes.head()
        named = (f"gpu-{number}" for number in (1, 2, 3))
        started = {name: nodes.node(name, "--num-gpus=2", "--labels=for=ends") for name in named}
        with ray_plane(servers, nodes, tmp_path / "home", "ends") as plane:
            job = make_job(tmp_path, "leaver")
            run = plane.submit(job.spec)
            first = at_attempt(job, plane, run, 1)
            ends, stays = sorted(first)
            started[ends].terminate()
            second = at_attempt(job, plane, run, 2)
            assert {*second} == {*started} - {ends}
            assert second[stays] == first[stays]
            (reason,) = finish(job, plane, run)
            assert "Ray drains the node, and ends it at " in reason
            assert [each["lost_steps"] for each in plane.show(run)["restarts"]] == [0]
