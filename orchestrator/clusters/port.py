"""The port of clusters: what the control plane asks of the place where workers run.

One protocol, one implementation per kind of cluster, chosen by name in
:mod:`orchestrator.clusters.factory`. Every implementation passes
`tests/integration/test_clusters_contract.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from jobs.environment import Environment
from jobs.spec import RunSpec
from orchestrator.core.messages.events import NodeInfo


class AgentAccess(NamedTuple):
    """How one agent reaches the server, and proves who it is."""

    server_url: str
    """`ws://host:port/agent` as seen from the agent's node, not from the server."""
    token: str
    """Bearer token of this worker alone."""
    environment: Environment | None = Environment()
    """The environment that was submitted with the run; None: it is lost."""
    ca: str | None = None
    """PEM text of the authorities that sign the server's certificate; None: the system's."""


class WorkerLaunch(BaseModel):
    """Everything a cluster needs to start an agent.

    A cluster passes `server_url`, `token`, `ca`, `bundle`, `checks` and `peer` to the agent's
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
    ca: str | None = None
    """PEM text of the authorities that sign the server's certificate; None: the agent trusts those
    of its node's system. The text is public. A cluster that shares files with the server may pass
    a file of its own instead."""
    bundle: str | None = None
    """Id of the code of the run (sha256 in hex), which the agent fetches and unpacks; None: the
    code is where `spec.workdir` says, as seen from the node."""
    checks: tuple[str, ...] = ()
    """For :class:`jobs.config.AgentConfig`: check programs that run before the worker joins."""
    peer: str = ""
    """For :class:`jobs.config.AgentConfig`: where the check of a link connects to."""
    spec: RunSpec
    environment: Environment | None = Field(default=Environment(), repr=False)
    """The environment that was submitted with the run, to be given to the agent without a trace in
    logs or files of other users; None: it is lost, and the launch is refused."""
    grace_seconds: float = 30.0
    """Time that the ranks get to save when the worker has to leave, as known at the launch:
    the spec's `grace`, or more where saves of the run were seen to take longer. A cluster that
    kills what does not leave (`terminationGracePeriodSeconds`) waits longer than this."""


class WorkerGone(BaseModel):
    """Statement of the cluster that no process of a worker is left, on any node."""

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    reason: str
    """`agent exited with code 0`, `agent was killed by SIGKILL`, `node lost` …"""


class WorkerLeaving(BaseModel):
    """Statement of the cluster that it, or somebody through it, ends a worker that is alive.

    The worker has some time to save; WorkerGone follows.
    """

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    reason: str
    """In the cluster's words: `EvictionByEvictionAPI: …`."""


class WorkerStuck(BaseModel):
    """Statement of the cluster that a launched worker does not start, and why."""

    model_config = ConfigDict(frozen=True)

    worker: str
    run: str
    reason: str
    """In the cluster's words: `ImagePullBackOff: …`; empty: the worker is stuck no longer."""
    elsewhere: bool = False
    """True if another node may do, and this one does not, as far as the cluster knows."""
    hopeless: bool = False
    """True if it starts on no other node either: the spec must change, or its image be pushed."""


class InventoryChanged(BaseModel):
    """Statement that :meth:`Cluster.nodes` has news that must not wait: a preemption notice.

    Without it the inventory is read every few seconds.
    """

    model_config = ConfigDict(frozen=True)


Change = WorkerGone | WorkerLeaving | WorkerStuck | InventoryChanged
"""An item of :meth:`Cluster.changes`, as far as a cluster can tell it."""


class Cluster(Protocol):
    """The place where workers run.

    Every method is idempotent: the outbox repeats calls after a crash of the server.
    """

    ignored_fields: Mapping[str, str]
    """Fields of a run spec that have no effect here, such as `image`, each with the reason that
    `babysit submit` prints."""

    needed_fields: Mapping[str, str]
    """Fields that a run spec must set here, such as `image`, each with what to do if it does not;
    a submission without one is refused."""

    runs_here: bool
    """True if workers are processes of the server's user on the server's machine.

    Only then has the environment of a submitter's shell (PATH, HOME, a venv) the same meaning for
    the ranks. Elsewhere only the variables that `env_from` of the spec names go with a run."""

    takes_bundles: bool
    """True if workers are processes on other machines: `submit` uploads the code of a run, and its
    agents fetch it. False: the code is where the server finds it, or no process is started."""

    async def nodes(self) -> list[NodeInfo]:
        """The inventory."""

    async def launch(self, launch: WorkerLaunch) -> None:
        """Start an agent. Returns when the agent is started, not when it has joined.

        A worker is started at most once: if the worker has run before and is gone, the call starts
        nothing and WorkerGone follows.

        Raises:
            ClusterError: The agent cannot be started now. It may have been started all the same.
            ValueError: The launch is wrong itself, so that no other try helps.
        """

    async def stop(self, worker: str, run: str) -> None:
        """End the agent and every process of its worker.

        WorkerGone follows, even if the worker was gone already or never started. Returns when the
        end is certain even if this server dies now. A worker that was stopped never starts again.

        Raises:
            ClusterError: The cluster cannot reach the worker now.
        """

    async def alive(self, worker: str, run: str) -> bool | None:
        """True if any process of the worker is alive; None if the cluster cannot tell.

        Never a guess: the controller starts the next attempt on a False.
        """

    def changes(self) -> AsyncIterator[Change]:
        """News of workers, beginning with those that ended before the start.

        Each end is yielded at least once. A worker that is gone counts as acknowledged when the
        reader asks for the next change, so the reader stores what follows from it first. The other
        statements may be lost with a server. For one reader only.
        """

    async def keep_runs(self, runs: Collection[str]) -> None:
        """Remove what the cluster keeps of all other runs, unless a worker of theirs may be alive.

        Called now and then with the runs that are not over.

        Raises:
            ClusterError: The cluster cannot be reached now.
        """

    async def cordon(self, reasons: Mapping[str, str]) -> None:
        """Keep the new work of everybody off these nodes (id: reason), as far as the cluster can.

        Nodes that an earlier call named and this one does not are taken back; cordons of others
        stay. Called now and then with all nodes that the control plane does not use.

        Raises:
            ClusterError: The cluster cannot be reached now.
        """

    async def close(self) -> None:
        """Stop watching. Workers continue: training never depends on the control plane."""
