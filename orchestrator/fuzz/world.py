"""Everything that there is in one run of the fuzzer, and what can happen to nodes.

What happens when is not decided here: see :mod:`orchestrator.fuzz.simulation`, and the faults and
users that it lets loose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from babysit.wire import Tier
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.core.messages.instructions import (
    Instruction,
    LaunchWorker,
    SendCommand,
    StopWorker,
)
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import WorkerState
from orchestrator.fuzz.agents import Agent
from orchestrator.fuzz.environment import Environment
from orchestrator.fuzz.gangs import Gangs
from orchestrator.fuzz.invariants import Invariants
from orchestrator.fuzz.plan import Plan, Submission
from orchestrator.fuzz.servers import Server
from orchestrator.fuzz.training import Job


class World(Environment):
    """The environment with all that acts in it: servers, agents, and the runs that are trained.

    Attributes:
        agents: Every agent that ever was launched, by its worker.
        jobs: What each run that was ever wanted really is.
        wanted: The runs that users want, by id.
        submitted: Runs that their users have seen stored.
        invariants: Checks every transaction against what is really so (which it asks for here: see
            :class:`orchestrator.fuzz.invariants.Truth`).
    """

    def __init__(self, plan: Plan, kinds: Collection[str]) -> None:
        super().__init__(plan.seed, plan.nodes, kinds)
        self.plan = plan
        self.nodes = {node.id: node for node in plan.nodes}
        self.invariants = Invariants(self.database.raw, self, self.trace.add)
        self.database.on_commit = self.invariants.committing
        self.cluster.on_begin, self.cluster.on_end = self._begun, self._ended
        self.agents: dict[str, Agent] = {}
        self.jobs: dict[str, Job] = {}
        self.wanted: dict[str, Submission] = {}
        self.submitted: set[str] = set()
        for submission in plan.submissions:
            self.want(submission)
        self.gangs = Gangs(self, self.jobs, self.invariants.ranks_start)
        names = [f"server-{i + 1}" for i in range(plan.servers)]
        self.servers = [Server(self, name, self.invariants) for name in names]
        self._lost: set[str] = set()

    def want(self, submission: Submission) -> None:
        """Note that a user wants a run."""
        run = submission.run
        self.wanted[run] = submission
        self.jobs[run] = Job(run, submission.steps, submission.step_seconds)

    # --- what is really so ----------------------------------------------------------------------

    def seconds(self) -> float:
        """Virtual seconds since the run began."""
        return self.loop.time()

    def carried_out(self, instruction: Instruction) -> bool:
        """True if the addressee of an instruction, an agent or the cluster, has received it."""
        match instruction:
            case SendCommand():
                agent = self.agents.get(instruction.worker)
                return agent is None or instruction.command.id in agent.seen
            case LaunchWorker():
                launched = self.invariants.stored.workers[instruction.worker]
                asked = instruction.worker in self.cluster.workers
                return asked or launched.state is not WorkerState.LAUNCHING
            case StopWorker():
                worker = self.cluster.workers.get(instruction.worker)
                return worker is not None and worker.stop_asked
        return True

    def in_contact(self, worker: str) -> bool:
        """True if an agent lives and can be reached."""
        agent = self.agents.get(worker)
        return agent is not None and agent.alive and agent.node not in self.network.cut

    def acknowledged(self, worker: str) -> int:
        """The sequence up to which an agent believes that its reports are stored."""
        return self.agents[worker].acknowledged

    def left_behind(self, checkpoint: Checkpoint) -> bool:
        """True if shards of a checkpoint are there, and none of a later attempt at its place.

        Not of one that the control plane could not hear of. Nor of one that a person removed after
        the end of its run: the route of the API removes the files then, and it is not played.
        """
        unheard = any(
            checkpoint.path in agent.hand.unsaid(agent.acknowledged)
            for agent in self.agents.values()
        )
        ended, deleted = self.invariants.stored.runs[checkpoint.run].ended_at, checkpoint.deleted_at
        by_route = ended is not None and deleted is not None and deleted >= ended
        if unheard or by_route:
            return False
        return self.storage.left(checkpoint.path, checkpoint.attempt)

    def damaged(self, checkpoint: Checkpoint) -> bool:
        """True if a checkpoint does not read back as it was written; memory may just be gone."""
        if checkpoint.tier is Tier.MEMORY:
            return True
        ranks = tuple(range(checkpoint.world_size))
        return bool(self.storage.fault(checkpoint.path, checkpoint.attempt, ranks))

    def strays(self) -> Iterator[str]:
        """Sentences about agents that live, and that the database does not know.

        Where it does not know the run either, since an older one was restored, people end them.
        """
        stored, went_back = self.invariants.stored, self.invariants.went_back
        for worker, agent in self.agents.items():
            lost = went_back and agent.run not in stored.runs
            if agent.alive and worker not in stored.workers and not lost:
                yield f"{worker} is alive, and the database does not know it"

    # --- workers --------------------------------------------------------------------------------

    def _begun(self, launch: WorkerLaunch) -> None:
        agent = Agent(self, launch, self.servers, self.gangs, self.invariants.reported)
        self.agents[launch.worker] = agent
        self.loop.spawn(launch.worker, agent.live())

    def _ended(self, worker: str) -> None:
        if worker in self.agents:
            self.agents[worker].end()

    # --- nodes ----------------------------------------------------------------------------------

    def lose(self, node: str) -> None:
        """A node dies, with all that runs on it."""
        if node not in self._lost:
            self.trace.add(f"{node} is lost")
            self._lost.add(node)
            self.network.cut.add(node)
            self.cluster.lose(node)

    def bring_back(self, node: str) -> None:
        """A node that was lost is there again, empty."""
        if node in self._lost:
            self.trace.add(f"{node} is back")
            self._lost.remove(node)
            self.network.cut.discard(node)
            self.cluster.add(self.nodes[node])

    def cut_off(self, node: str, *, cluster_too: bool) -> None:
        """Servers cannot reach a node, nor can the cluster if `cluster_too`; its ranks go on."""
        if node not in self._lost and node not in self.network.cut:
            self.trace.add(f"{node} is cut off{', from the cluster too' if cluster_too else ''}")
            self.network.cut.add(node)
            if cluster_too:
                self.cluster.partition(node)

    def reconnect(self, node: str) -> None:
        """A node that was cut off can be reached again, unless it was lost meanwhile."""
        if node in self.network.cut and node not in self._lost:
            self.trace.add(f"{node} can be reached again")
            self.network.cut.discard(node)
            if node in self.cluster.unreachable:
                self.cluster.heal(node)
