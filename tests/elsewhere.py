"""A cluster whose nodes share nothing with the server: for tests of what leaves the machine.

Its workers are processes here, as those of the local cluster, but they have another home, another
directory and an address of the loopback range for each node. Nothing of the server or the submitter
reaches them but what a launch and the server's endpoint give.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jobs.clock import Clock
from jobs.config import AgentConfig
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.settings import Settings
from tests.control_plane import ControlPlane, Servers

NODES = "nodes"
"""Directory beside the server's home that stands for the disks of the nodes."""
REGISTER = """
from orchestrator.clusters import factory
factory.CLUSTERS["elsewhere"] = "tests.elsewhere:from_settings"
"""


class Elsewhere(LocalCluster):
    """Implements the port of clusters as one does whose nodes are other machines."""

    runs_here = False
    takes_bundles = True

    def _config(self, launch: WorkerLaunch) -> AgentConfig:
        directory = self._records.directory(launch.run, launch.worker)
        ca = directory / "ca.pem"
        ca.write_text(launch.ca or "")
        changes: dict[str, Any] = {"ca": ca, "server_file": None}
        # One node learns its address from its cluster, the other at its start, as a Pod does.
        changes["address"] = "127.0.0.11" if launch.node == "node-1" else ""
        return super()._config(launch).model_copy(update=changes)


def from_settings(settings: Settings, clock: Clock) -> Elsewhere:
    """The cluster of a home, with its nodes' disks beside it."""
    agent = ("env", "BABYSIT_NODE_ADDRESS=127.0.0.12", sys.executable, "-P", "-m", "jobs.agent")
    home = settings.home.parent / NODES
    return Elsewhere(
        LocalClusterSettings(home=home, nodes=settings.local_nodes, agent=agent), clock
    )


def servers() -> Servers:
    """Where servers come from that know this cluster."""
    return Servers(REGISTER)


class RemotePlane(ControlPlane):
    """A control plane whose agents reach it by one port, over TLS."""

    def __init__(
        self, made: Servers, home: Path, certificate: Path, port: int, **settings: Any
    ) -> None:
        super().__init__(
            made,
            home,
            cluster="elsewhere",
            port=port,
            agent_url=f"wss://127.0.0.1:{port}/agent",
            agent_ca=certificate,
            tls_certificate=certificate,
            tls_key=certificate.with_name("key.pem"),
            **settings,
        )
        self.disk = home.parent / NODES
        self.disk.mkdir(mode=0o700)
