"""A control plane whose workers are actors of the test bed: real server, agents and ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.control_plane import ControlPlane, Servers, control_plane
from tests.prometheus import free_port
from tests.ray.bed import Bed
from tests.ray.commands import Nodes


@contextlib.contextmanager
def ray_plane(servers: Servers, bed: Bed | Nodes, home: Path, nodes: str) -> Iterator[ControlPlane]:
    """A control plane that leads, and uses the nodes with the label `for` of this value."""
    port = free_port()
    directory = home.parent / "nodes"
    directory.mkdir(mode=0o700)
    given = {
        "cluster": "ray",
        "ray_address": bed.address,
        "ray_namespace": nodes,
        "ray_nodes": f"for={nodes}",
        "ray_directory": directory,
        "port": port,
        "agent_url": f"ws://127.0.0.1:{port}/agent",
    }
    with control_plane(servers, home, **given) as plane:
        yield plane
