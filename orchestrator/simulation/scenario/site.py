"""The simulated site: nodes and agents as the cluster sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial

from jobs.events import WorkerJoined
from orchestrator.core.messages.events import (
    CapacityChanged,
    NodeChanged,
    NodeInfo,
    WorkerLost,
    WorkerRegained,
)
from orchestrator.core.messages.instructions import LaunchWorker, ProbeWorker, StopWorker
from orchestrator.core.model.states import NodeState
from orchestrator.simulation.scenario.model import Delay, Scenario
from orchestrator.simulation.scenario.random_streams import Chance
from orchestrator.simulation.scenario.virtual_time import Engine

_STOP_SECONDS = 1.0
"""Seconds from the order to stop an agent until the cluster confirms it."""
_PORT = 29_500


@dataclasses.dataclass(slots=True)
class Host:
    """The true state of one node."""

    info: NodeInfo
    up: bool = True
    listed: bool = True
    """True while the cluster lists the node."""
    away: bool = False
    """True while the node is unreachable; its agents continue to run."""
    slowdown: float = 1.0
    lost_at: float | None = None
    """Second at which it last died; None: never."""
    agents: dict[str, Agent] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Agent:
    """The true state of one worker."""

    worker: str
    run: str
    host: Host
    stopping: bool = False
    """True once the cluster has the order to stop it, which it does when it reaches the node."""


class Site:
    """Executes orders to the cluster and reports what happens to nodes and agents."""

    def __init__(self, scenario: Scenario, engine: Engine, chance: Chance) -> None:
        self._engine, self._chance, self._recovery = engine, chance, scenario.recovery
        self._repair = scenario.cluster.repair
        self.hosts = {info.id: Host(info) for info in inventory(scenario)}
        self.agents: dict[str, Agent] = {}
        self.storage_slowdown = 1.0

    def open(self) -> None:
        """Report all listed nodes to the core."""
        nodes = tuple(host.info for host in self.hosts.values() if host.listed)
        self._engine.tell(CapacityChanged, nodes=nodes, actor="cluster")

    def reaches(self, worker: str) -> bool:
        """True if the agent can be reached."""
        agent = self.agents.get(worker)
        return agent is not None and not agent.host.away and agent.host.up

    def slowdown(self, nodes: Iterable[str]) -> float:
        """Slowdown factor of a gang on these nodes: that of its slowest node."""
        slow = {name: host.slowdown for name, host in self.hosts.items() if host.slowdown > 1.0}
        return max((slow[name] for name in nodes if name in slow), default=1.0) if slow else 1.0

    # orders to the cluster

    def launch(self, order: LaunchWorker) -> None:
        """Launch an agent; it joins after the launch delay if its node is reachable."""
        host = self.hosts[order.node]
        agent = Agent(order.worker, str(order.run), host)
        self.agents[order.worker] = host.agents[order.worker] = agent
        self._after(self._recovery.launch, "launch", partial(self._up, agent))

    def _up(self, agent: Agent) -> None:
        if self.agents.get(agent.worker) is not agent:
            return
        if not agent.host.up or agent.host.away:
            self._gone(agent, "its node does not answer")
            return
        node = agent.host.info.id
        self._engine.tell(
            WorkerJoined,
            run=agent.run,
            worker=agent.worker,
            attempt=0,
            node=node,
            address=node,
            port=_PORT,
        )

    def stop(self, order: StopWorker) -> None:
        """Stop an agent as soon as the cluster can reach it."""
        agent = self.agents.get(order.worker)
        if agent is not None and not agent.stopping:
            agent.stopping = True
            self._engine.after(_STOP_SECONDS, partial(self._end, agent))

    def leave(self, worker: str) -> None:
        """Stop an agent by its own shutdown command; lost if the agent is unreachable."""
        agent = self.agents.get(worker)
        if agent is not None and self.reaches(worker):
            agent.stopping = True
            self._engine.after(_STOP_SECONDS, partial(self._end, agent))

    def _end(self, agent: Agent) -> None:
        if agent.stopping and not agent.host.away:
            self._gone(agent, "stopped")

    def probe(self, order: ProbeWorker) -> None:
        """Ask the cluster whether an agent is alive; it knows only about reachable nodes."""
        agent = self.agents.get(order.worker)
        if agent is not None and not agent.host.up:
            self._after(self._recovery.cluster_confirms, "cluster", partial(self._confirm, agent))

    def _confirm(self, agent: Agent) -> None:
        if agent.host.listed and not agent.host.up:
            agent.host.listed = False
            self.open()
        self._gone(agent, "its node is dead", since=agent.host.lost_at)

    def _gone(self, agent: Agent, reason: str, since: float | None = None) -> None:
        if self.agents.pop(agent.worker, None) is not None:
            agent.host.agents.pop(agent.worker, None)
            self._engine.tell(
                WorkerLost,
                since=since,
                run=agent.run,
                worker=agent.worker,
                confirmed=True,
                reason=reason,
                actor="cluster",
            )

    # nodes

    def lose(self, host: Host) -> None:
        """Kill a host with all its agents, and schedule its repair."""
        host.up, host.lost_at = False, self.now
        for agent in list(host.agents.values()):
            self._silent(agent)
        if not host.agents:
            host.listed = False
            self.open()
        self._after(self._repair, "repair", partial(self._repaired, host))

    def _silent(self, agent: Agent) -> None:
        self._after(
            self._recovery.contact_lost, "contact", partial(self._out_of_contact, agent, self.now)
        )

    def _out_of_contact(self, agent: Agent, since: float) -> None:
        if agent.worker not in self.agents or self.reaches(agent.worker):
            return
        self._engine.tell(
            WorkerLost,
            since=since,
            run=agent.run,
            worker=agent.worker,
            confirmed=False,
            reason=f"no sign of life for {self.now - since:.0f} s",
        )

    def _repaired(self, host: Host) -> None:
        host.up, host.listed, host.slowdown = True, True, 1.0
        for agent in list(host.agents.values()):
            self._gone(agent, "its node was started again")
        self.open()

    def cordoned(self, node: str) -> None:
        """Schedule the repair of a node that automation has cordoned."""
        reason = "repaired"
        self._after(self._repair, "repair", partial(self.mark, node, "ready", reason))

    def mark(self, node: str, state: str, reason: str) -> None:
        """Cordon, drain or uncordon a node, unless it is in that state already, or gone."""
        entity = self._engine.state.nodes[node]
        if entity.state not in {NodeState.GONE, NodeState(state)}:
            self._engine.tell(
                NodeChanged, node=node, state=state, reason=reason, actor="operator:site"
            )

    def cut_off(self, level: str, node: str, lasts: float) -> list[Host]:
        """Make a rack or spine unreachable for `lasts` seconds.

        Returns:
            The affected hosts.
        """
        place = self.hosts[node].info.labels[level]
        hosts = [h for h in self.hosts.values() if h.info.labels[level] == place and not h.away]
        for host in hosts:
            host.away = True
            for agent in host.agents.values():
                self._silent(agent)
        self._engine.after(lasts, partial(self._back, hosts))
        return hosts

    def _back(self, hosts: list[Host]) -> None:
        for host in hosts:
            host.away = False
        for agent in [agent for host in hosts for agent in host.agents.values()]:
            if agent.stopping:
                self._end(agent)
            else:
                self._engine.tell(WorkerRegained, run=agent.run, worker=agent.worker)

    @property
    def now(self) -> float:
        """Seconds since the scenario began."""
        return self._engine.now

    def _after(self, delay: Delay, concern: str, action: partial[None]) -> None:
        self._engine.after(self._chance.delay(delay, concern), action)


def inventory(scenario: Scenario) -> list[NodeInfo]:
    """The nodes of the cluster with their place in the topology."""
    cluster = scenario.cluster
    width = len(str(cluster.size))
    nodes = []
    for place in range(cluster.size):
        rack = place // cluster.nodes_per_rack
        labels = {"zone": "z1", "spine": f"s{rack // cluster.racks_per_spine + 1}"}
        nodes.append(
            NodeInfo(
                id=f"n{place + 1:0{width}d}",
                gpus=cluster.gpus_per_node,
                cpus=cluster.cpus_per_node,
                labels={**labels, "rack": f"r{rack + 1}"},
            )
        )
    return nodes
