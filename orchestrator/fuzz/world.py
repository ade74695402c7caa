"""One story: everything there is, and how it is told from a plan."""

from __future__ import annotations

import contextvars
import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator

from jobs.commands import StartAttempt
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.core.messages.instructions import (
    Instruction,
    LaunchWorker,
    SendCommand,
    StopWorker,
)
from orchestrator.core.model.states import WorkerState
from orchestrator.fuzz import faults as blows
from orchestrator.fuzz import placement_invariants, users
from orchestrator.fuzz.agents import Agent
from orchestrator.fuzz.cluster import Site
from orchestrator.fuzz.event_loop import WORLD, WORLD_CONTEXT, ProcessClock, VirtualLoop, rest
from orchestrator.fuzz.fault_rates import Weather
from orchestrator.fuzz.flaky_database import DISK, Disk
from orchestrator.fuzz.invariants import Promises
from orchestrator.fuzz.log import heard
from orchestrator.fuzz.network import Network
from orchestrator.fuzz.plan import Blow, Choice, Plan
from orchestrator.fuzz.servers import Server
from orchestrator.fuzz.storage import Storage
from orchestrator.fuzz.training import Gang, Job

PATIENCE_SECONDS = 2400.0
"""Virtual seconds after the last fault in which every run must have come to its end."""
_LOOK_SECONDS = 2.0
_CONTACT_SECONDS = 60.0
"""After a server has begun to lead, agents have found it by then."""
_OVERDUE_SECONDS = 45.0
"""An order to an agent in contact is late when it takes so long."""


class Story:
    """What has happened so far, for whoever has to understand a failure."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.lines: list[tuple[float, str]] = []
        self._loop = loop

    def tell(self, what: str) -> None:
        """One line."""
        self.lines.append((self._loop.time(), what))


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a story ended.

    Attributes:
        broken: The promise that was broken, in a sentence; empty: none.
        journal: A hash over the journal: equal stories have equal ones.
        turns: Transactions checked.
        seconds: Virtual seconds told.
        blows: Faults of the plan that fell.
        story: What happened, oldest first.
    """

    broken: str
    journal: str
    turns: int
    seconds: float
    blows: tuple[Blow, ...]
    story: tuple[str, ...]


class World:
    """Database, cluster, network, servers, agents and people of one story."""

    def __init__(self, plan: Plan, choice: Choice) -> None:
        self.plan, self.choice = plan, choice
        self.loop = VirtualLoop()  # type: ignore[abstract]  # without sockets and threads
        self.clock = ProcessClock(self.loop)
        self.story = Story(self.loop)
        self.weather = Weather.drawn(self.random("weather"), choice.faults)
        self.disk = Disk(self.loop, self.random("disk"), self.weather)
        self.promises = Promises(self.disk.raw, self, self.story.tell)
        self.disk.on_commit = self.promises.committing
        self.network = Network(self.loop, self.random("network"), self.weather)
        self.nodes = {node.id: node for node in plan.nodes}
        self.site = Site(plan.nodes, self.clock, begun=self._begun, ended=self._ended)
        self.storage = Storage()
        self.agents: dict[str, Agent] = {}
        self.gangs: dict[tuple[str, int], Gang] = {}
        self.jobs = {s.run: Job(s.run, s.steps, s.step_seconds) for s in plan.submissions}
        self.servers = [Server(self, f"server-{i + 1}") for i in range(plan.servers)]
        self._ids = itertools.count(1)
        self._lost: set[str] = set()
        self._leaders: tuple[str, ...] = ()
        self._leading_since = 0.0

    def random(self, purpose: str) -> random.Random:
        """Chance for one purpose, so that what happens elsewhere does not change it."""
        return random.Random(f"{self.plan.seed} {purpose}")

    def new_id(self, prefix: str) -> str:
        """An id that nobody has had before."""
        return f"{prefix}{next(self._ids):06d}"

    # --- what is really so ----------------------------------------------------------------------

    def seconds(self) -> float:
        """Virtual time."""
        return self.loop.time()

    def carried_out(self, instruction: Instruction) -> bool:
        """Whether whom it concerns has heard of it."""
        match instruction:
            case SendCommand():
                agent = self.agents.get(instruction.worker)
                return agent is None or instruction.command.id in agent.seen
            case LaunchWorker():
                known = self.promises.book.workers[instruction.worker]
                asked = instruction.worker in self.site.workers
                return asked or known.state is not WorkerState.LAUNCHING
            case StopWorker():
                worker = self.site.workers.get(instruction.worker)
                return worker is not None and worker.stop_asked
        return True

    def in_contact(self, worker: str) -> bool:
        """Whether an agent lives, and can be reached."""
        agent = self.agents.get(worker)
        return agent is not None and agent.alive and agent.node not in self.network.cut

    def alive_attempts(self, run: str) -> set[int]:
        """Attempts of which ranks are alive."""
        return {
            gang.attempt
            for gang in self.gangs.values()
            if gang.job.run == run and any(share.alive for share in gang.shares)
        }

    # --- what happens to it ---------------------------------------------------------------------

    def _begun(self, launch: WorkerLaunch) -> None:
        agent = self.agents[launch.worker] = Agent(self, launch)
        self.loop.spawn(launch.worker, agent.live())

    def _ended(self, worker: str) -> None:
        if worker in self.agents:
            self.agents[worker].end()

    def gang(self, run: str, command: StartAttempt) -> Gang:
        """The gang of an attempt, whole or not."""
        key = run, command.attempt
        if key not in self.gangs:
            self.gangs[key] = Gang(self, self.jobs[run], command)
        return self.gangs[key]

    def lose(self, node: str) -> None:
        """A node dies."""
        if node not in self._lost:
            self.story.tell(f"{node} is lost")
            self._lost.add(node)
            self.network.cut.add(node)
            self.site.lose(node)

    def bring_back(self, node: str) -> None:
        """A node is there again, empty."""
        if node in self._lost:
            self.story.tell(f"{node} is back")
            self._lost.remove(node)
            self.network.cut.discard(node)
            self.site.add(self.nodes[node])

    def cut_off(self, node: str, *, cluster_too: bool) -> None:
        """A node cannot be reached by servers, nor perhaps by the cluster."""
        if node not in self._lost and node not in self.network.cut:
            self.story.tell(f"{node} is cut off{', from the cluster too' if cluster_too else ''}")
            self.network.cut.add(node)
            if cluster_too:
                self.site.partition(node)

    def reconnect(self, node: str) -> None:
        """A node can be reached again."""
        if node in self.network.cut and node not in self._lost:
            self.story.tell(f"{node} can be reached again")
            self.network.cut.discard(node)
            if node in self.site.unreachable:
                self.site.heal(node)

    # --- telling it -----------------------------------------------------------------------------

    def tell(self) -> Outcome:
        """Tell the story to its end, or to the first broken promise."""
        with heard(self._overheard):
            outcome = contextvars.copy_context().run(self._tell)
            self.disk.away = True
            self.loop.bury()
        return outcome

    def _tell(self) -> Outcome:
        DISK.set(self.disk)
        WORLD_CONTEXT.run(DISK.set, self.disk)
        blows_ = tuple(blow for blow in self.plan.blows if self.choice.admits(blow))
        for server in self.servers:
            server.boot()
        for submission in self.plan.submissions:
            self.loop.spawn(WORLD, users.submit(self, submission))
        for blow in blows_:
            self.loop.call_at(blow.at, self._strike, blow)
        self.loop.call_at(self.plan.calm_at, self._calm)
        watching = self.loop.spawn(WORLD, self._watch())
        self.loop.run(watching)
        self.promises.audit()
        return Outcome(
            broken=self.promises.broken,
            journal=self._digest(),
            turns=self.promises.turns,
            seconds=self.loop.time(),
            blows=blows_,
            story=tuple(f"{at:9.3f}  {what}" for at, what in self.story.lines),
        )

    def _strike(self, blow: Blow) -> None:
        self.story.tell(f"blow {blow.number}: {blow.kind}")
        blows.BLOWS[blow.kind](self, self.random(f"blow {blow.number}"))

    def _calm(self) -> None:
        """No more faults: what is away comes back, nodes when their time has come."""
        self.story.tell("no more faults")
        self.weather.clear()
        self.disk.away = self.site.away = False
        for server in self.servers:
            blows.later(self, 31.0, server.boot)
        self.loop.spawn(WORLD, users.clear_up(self))

    async def _watch(self) -> None:
        """Until a promise is broken, everything is done, or patience ends."""
        end = self.plan.calm_at + PATIENCE_SECONDS
        while not self.promises.broken:
            await rest(self.loop, _LOOK_SECONDS)
            if self.loop.failures:
                self.promises.breaks(self.loop.failures[0])
            if self.loop.time() < self.plan.calm_at:
                continue
            calm_since = max(self._led_since(), self.plan.calm_at)
            if self.loop.time() > calm_since + _CONTACT_SECONDS:
                for sentence in self._late():
                    self.promises.breaks(sentence)
            left = next(self.promises.unfinished(), None)
            if left is None and len(self.promises.book.runs) == len(self.jobs):
                return
            if self.loop.time() > end:
                self.promises.breaks(f"{PATIENCE_SECONDS:.0f} s after the last fault, {left}")

    def _late(self) -> Iterator[str]:
        """What should have been done by now, in sentences."""
        yield from self.promises.overdue(_OVERDUE_SECONDS)
        if self.promises.right_clocks:
            yield from placement_invariants.late_maintenance(self.promises.book, self.clock.now())

    def _led_since(self) -> float:
        """Since when one server has led without faults, to within a look."""
        leaders = tuple(server.process for server in self.servers if server.leads)
        if leaders != self._leaders or not leaders:
            self._leaders, self._leading_since = leaders, self.loop.time()
        return self._leading_since

    def _overheard(self, level: str, what: str) -> None:
        """What the control plane itself calls a defect is one."""
        self.story.tell(f"    log: {what}")
        if level in {"error", "critical"}:
            self.promises.breaks(f"the log says: {what}")

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for row in self.disk.raw.execute("SELECT * FROM journal ORDER BY position"):
            digest.update(repr(row).encode())
        return digest.hexdigest()
