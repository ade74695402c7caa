"""The port of clusters: what the control plane asks of the place where workers run.

One protocol, one implementation per kind of cluster, chosen by name in
:mod:`orchestrator.clusters.factory`. Every implementation passes
`tests/integration/test_clusters_contract.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from jobs.spec import RunSpec
from orchestrator.core.messages.events import NodeInfo


class AgentAccess(NamedTuple):
    """How one agent reaches the server, and proves who it is."""

    server_url: str
    """`ws://host:port/agent` as seen from the agent's node, not from the server."""
    token: str
    """Bearer token of this worker alone."""


class WorkerLaunch(BaseModel):
    """Everything a cluster needs to start an agent.

    A cluster passes `server_url` and `token` to the agent's
    :class:`jobs.config.AgentConfig`; it needs no other knowledge of the server.
    """

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    node: str
    server_url: str
    """`ws://host:port/agent` of the server that launches, as seen from the agent's node."""
    token: str
    """Bearer token of this worker alone."""
    spec: RunSpec


class WorkerGone(BaseModel):
    """The cluster says: no process of this worker is left."""

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    reason: str
    """`agent exited with code 0`, `agent was killed by SIGKILL`, `node lost` …"""


class Cluster(Protocol):
    """Where workers run. Every method may be called again with the same arguments (idempotent)."""

    ignored_fields: Mapping[str, str]
    """Fields of a run spec that have no effect here, such as `image`, each with the reason that
    `babysit submit` prints."""

    async def nodes(self) -> list[NodeInfo]:
        """The inventory."""

    async def launch(self, launch: WorkerLaunch) -> None:
        """Start an agent. Returns when it is started, not when it has joined.

        A worker is started once: where it was started before and is gone, WorkerGone follows.

        Raises:
            ClusterError: It cannot be started here as things are.
        """

    async def stop(self, worker: str, run: str) -> None:
        """End the agent and every process that belongs to it.

        WorkerGone follows, also if it was gone already. Returns when the end is certain to come
        even if this server dies now.
        """

    async def alive(self, worker: str, run: str) -> bool | None:
        """Whether any process of it is alive; None: cannot tell."""

    def changes(self) -> AsyncIterator[WorkerGone]:
        """Workers found gone, as it happens; also those found gone at start-up.

        At least once each: one counts as taken note of when the next is asked for, so store what
        follows from it before. For one reader.
        """

    async def close(self) -> None:
        """Stop watching. Workers go on: training never stops because the control plane is gone."""
