"""What the control plane asks of a cluster: one small protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from jobs.spec import RunSpec
from orchestrator.core.messages.events import NodeInfo


class WorkerLaunch(BaseModel):
    """Everything a cluster needs to start an agent."""

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    node: str
    token: str
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
