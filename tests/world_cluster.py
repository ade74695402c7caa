"""Agents and a cluster, made up for tests of the core.

They answer instructions with messages that are to be delivered.

Messages of one worker stay in order when `fifo` is used; the property test delivers them in any
order, twice, or late.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from jobs.checks.results import CheckResult
from jobs.commands import (
    CaptureStacks,
    DeleteCheckpoint,
    FindCheckpoints,
    Shutdown,
    StartAttempt,
    StopAttempt,
    VerifyCheckpoint,
)
from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    CheckpointDeleted,
    CheckpointsFound,
    Event,
    RankReady,
    RankRestored,
    RanksStarted,
    RankStack,
    StacksCaptured,
    WorkerJoined,
)
from jobs.shards import ShardReport
from jobs.spec import RunSpec
from orchestrator.controller.sample_pipeline import Progress, may_end
from orchestrator.core.machine import handle
from orchestrator.core.messages.check_events import NodeChecked
from orchestrator.core.messages.events import (
    CapacityChanged,
    LeadershipBegan,
    NodeInfo,
    RunSubmitted,
    SchedulingPassDue,
    StepReached,
    TimerFired,
    WorkerLost,
)
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
    CheckNode,
    Instruction,
    LaunchWorker,
    Notify,
    ProbeWorker,
    SendCommand,
    StopWorker,
)
from orchestrator.core.messages.notice_events import AskDelivered
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Incident,
    Node,
    Queue,
    Run,
    Worker,
)
from orchestrator.core.model.state import State

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_KINDS = ("runs", "attempts", "workers", "nodes", "checkpoints", "incidents", "queues")
_ENTITY: dict[type, TypeAdapter[Entity]] = {
    kind: TypeAdapter(kind) for kind in (Run, Attempt, Worker, Node, Checkpoint, Incident, Queue)
}


def reloaded(state: State) -> State:
    """The state as the next controller finds it: through JSON and back, without what is over."""
    stored = [entity for kind in _KINDS for entity in getattr(state, kind).values()]
    again = (_ENTITY[type(e)].validate_json(_ENTITY[type(e)].dump_json(e)) for e in stored)
    fresh = State([*again, state.fleet])
    fresh.forget()
    return fresh


def each_for_itself(instructions: Iterable[Instruction]) -> Iterator[Instruction]:
    """The instructions, with what a gang is told as its workers hear it."""
    for instruction in instructions:
        if isinstance(instruction, BroadcastCommand):
            yield from instruction.each()
        else:
            yield instruction


def spec(name: str = "tiny", nodes: int = 2, **fields: object) -> RunSpec:
    """A run spec with quick limits."""
    return RunSpec.model_validate(
        {
            "name": name,
            "command": ["python", "train.py"],
            "resources": {"nodes": nodes},
            "checkpoint": {"directory": "/checkpoints", "every_steps": 10, "good_after_steps": 10},
            **fields,
        }
    )


def on_its_own(asked: RunSpec, run: str) -> RunSpec:
    """The spec with a checkpoint directory of its own, unless its script saves by itself."""
    if asked.resume is not None:
        return asked
    own = asked.checkpoint.model_copy(update={"directory": f"/checkpoints/{run}"})
    return asked.model_copy(update={"checkpoint": own})


@dataclass
class Agent:
    """The truth about one worker."""

    worker: str
    run: str
    node: str
    alive: bool = True
    attempt: int = 0
    """Attempt whose ranks are alive here; 0: none."""
    newest: int = 0
    """Newest attempt ever started or stopped here: older orders are ignored."""
    ranks: tuple[int, ...] = ()
    world_size: int = 0
    memory: list[ShardReport] = field(default_factory=list)


REDUCE = ("all_reduce (torch/distributed/distributed_c10d.py:2800)", "step (train.py:30)")


def stopped(odd: int) -> Callable[[int], RankStack]:
    """Looks at ranks of which one is stopped, while the others wait for it in a collective."""
    return lambda rank: RankStack(
        rank=rank, process_state="T" if rank == odd else "S", frames=REDUCE
    )


def sleeping(odd: int) -> Callable[[int], RankStack]:
    """Looks at ranks of which one sleeps in its own code, while the others wait for it."""
    own = {"frames": ("validate (train.py:70)",), "wait_channel": "hrtimer_nanosleep"}
    return lambda rank: RankStack(
        **{"rank": rank, "process_state": "S", "frames": REDUCE, **(own if rank == odd else {})}
    )


def well(_node: str) -> tuple[CheckResult, ...]:
    """The results of a healthy node."""
    return (CheckResult(check="disk-write", figure=500.0, unit="MB/s"),)


@dataclass
class ClusterWorld:
    """A cluster of `nodes` nodes, the core's state, and the messages under way."""

    nodes: int = 4
    now: dt.datetime = START
    state: State = field(default_factory=State)
    agents: dict[str, Agent] = field(default_factory=dict)
    messages: list[Event] = field(default_factory=list)
    journal: list[tuple[Event, dt.datetime, list[Instruction]]] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    """Lengths of the journal at which the controller was restarted."""
    carried: list[Instruction] = field(default_factory=list)
    slow: bool = False
    """Commands wait in `orders` until they are obeyed."""
    orders: list[SendCommand] = field(default_factory=list)
    progress: dict[str, Progress] = field(default_factory=dict)
    """How far each run's rank 0 has come; the core hears of it as the controller tells it."""
    joins: bool = True
    """Scripts call `babysit.init()`."""
    restores: bool = True
    deletes: bool = True
    """Agents answer orders to delete a checkpoint."""
    """Scripts call `restore()`."""
    look: Callable[[int], RankStack] = field(default_factory=lambda: stopped(1))
    """What an agent sees when it looks at a rank."""
    disk: list[ShardReport] = field(default_factory=list)
    """Shards of whole checkpoints of which no report has come."""
    people_are_reached: bool = True
    """Questions about remedies are delivered, at once."""
    looks: bool = True
    """Agents answer orders to look for checkpoints on disk."""
    measured: Callable[[str], tuple[CheckResult, ...]] = field(default_factory=lambda: well)
    """What a node measures of itself in a check."""
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        infos = tuple(NodeInfo(id=f"node-{i + 1}", cpus=1) for i in range(self.nodes))
        self.do(self.event(CapacityChanged, nodes=infos))

    # reading

    def run(self, run: str = "run-1") -> Run:
        """The run as the core knows it."""
        return self.state.runs[run]

    def attempt(self, run: str = "run-1") -> Attempt:
        """Its newest attempt."""
        return self.state.attempts[run]

    def step(self, run: str = "run-1") -> int:
        """The step that rank 0 of the newest attempt has truly reached."""
        attempt, progress = self.attempt(run), self.progress.get(run, Progress())
        return max(attempt.step, progress.step if progress.attempt == attempt.number else 0)

    # events

    def event(self, kind: type[Event], **fields: object) -> Event:
        """An event with the next id, now."""
        return kind.model_validate({"id": f"{next(self._ids):08d}", "at": self.now, **fields})

    def do(self, event: Event) -> list[Instruction]:
        """Give the core an event, after the news, and the world its instructions."""
        self.tell_news(event)
        instructions = self._do(event)
        passes = 0
        while (cause := self.state.pass_wanted) is not None:
            instructions = [*instructions, *self._do(self.event(SchedulingPassDue, cause=cause))]
            passes += 1
            assert passes < 50, "each scheduling pass wants the next one"
        return instructions

    def tell_news(self, event: Event) -> None:
        """Tell the core what it must know before the event."""
        for attempt in may_end(event, self.state):
            if self.step(attempt.run) > attempt.step:
                self._tell_progress(attempt.run)

    def _tell_progress(self, run: str) -> None:
        known = self.progress[run]
        at = dt.datetime.fromtimestamp(known.time, dt.UTC)
        self._do(
            self.event(
                StepReached,
                run=run,
                attempt=known.attempt,
                step=known.step,
                at=at,
                first_step=known.first_step,
            )
        )

    def _do(self, event: Event) -> list[Instruction]:
        instructions = handle(self.state, event, self.now)
        self.journal.append((event, self.now, instructions))
        for instruction in each_for_itself(instructions):
            self.carried.append(instruction)
            self.carry_out(instruction)
        return instructions

    def submit(self, run_spec: RunSpec | None = None, run: str = "run-1") -> str:
        """Submit a run; its id."""
        self.do(self.event(RunSubmitted, run=run, spec=on_its_own(run_spec or spec(), run)))
        return run

    def advance(self, seconds: float) -> None:
        """Let time pass, firing what falls due on the way."""
        end = self.now + dt.timedelta(seconds=seconds)
        while (timer := self.state.next_timer()) is not None and timer.due <= end:
            self.now = max(self.now, timer.due)
            self.do(self.event(TimerFired, **timer._asdict()))
        self.now = end

    def settle(self) -> None:
        """Deliver everything under way, in order, until nothing is."""
        while self.messages or self.orders:
            while self.orders:
                self.obey(self.orders[0])
            if self.messages:
                self.do(self.messages.pop(0))

    def restart(self) -> None:
        """The controller is killed; the next one goes on with what is stored and not over."""
        self.restarts.append(len(self.journal))
        self.state = reloaded(self.state)
        self.do(self.event(LeadershipBegan))

    # what agents and the cluster do

    def obey(self, tell: SendCommand) -> None:
        """An agent gets a command, at last or once more; in vain if it is dead."""
        if tell in self.orders:
            self.orders.remove(tell)
        agent = self.agents.get(tell.worker)
        if agent is not None and agent.alive:
            self._obey(agent, tell)

    def carry_out(self, instruction: Instruction) -> None:
        """What an instruction leads to in the world, also when it is carried out again."""
        match instruction:
            case LaunchWorker():
                self._launch(instruction)
            case CheckNode():
                checked = {"node": instruction.node, "worker": instruction.worker}
                results = self.measured(instruction.node)
                self.messages.append(self.event(NodeChecked, **checked, results=results))
            case StopWorker():
                self.kill_agent(instruction.worker, "stopped")
            case ProbeWorker():
                agent = self.agents.get(instruction.worker)
                if agent is None or not agent.alive:
                    self._gone(
                        instruction.worker, str(instruction.run), "no process of it is alive"
                    )
            case Notify(asks=True) if self.people_are_reached:
                ask = {"run": instruction.run, "incident": instruction.incident}
                self._do(self.event(AskDelivered, **ask))
            case SendCommand():
                self.orders.append(instruction)
                if not self.slow:
                    self.obey(instruction)

    def _launch(self, order: LaunchWorker) -> None:
        if order.worker in self.agents:
            return
        self.agents[order.worker] = Agent(order.worker, str(order.run), order.node)
        self._say(
            self.agents[order.worker],
            WorkerJoined,
            attempt=0,
            node=order.node,
            address=order.node,
            port=20000,
            checks=self.measured(order.node) if order.checks else (),
        )

    def _obey(self, agent: Agent, tell: SendCommand) -> None:
        command = tell.command
        match command:
            case StartAttempt():
                if command.attempt > agent.newest:
                    self._start(agent, command)
            case StopAttempt():
                self._stop(agent, command.attempt)
            case CaptureStacks():
                stacks = tuple(self.look(rank) for rank in agent.ranks)
                self._say(agent, StacksCaptured, attempt=command.attempt, stacks=stacks)
            case VerifyCheckpoint():
                self._say(
                    agent,
                    CheckpointChecked,
                    attempt=command.attempt,
                    checkpoint=command.checkpoint,
                    ok=True,
                )
            case DeleteCheckpoint() if self.deletes:
                self._say(
                    agent, CheckpointDeleted, attempt=command.attempt, checkpoint=command.checkpoint
                )
            case FindCheckpoints() if self.looks:
                self._find(agent, command)
            case Shutdown():
                self.kill_agent(agent.worker, "left")

    def _find(self, agent: Agent, command: FindCheckpoints) -> None:
        found = (shard for shard in self.disk if shard.step > command.above)
        newest = sorted(found, key=lambda shard: (-shard.step, shard.rank))
        self._say(agent, CheckpointsFound, attempt=command.attempt, shards=tuple(newest))

    def _start(self, agent: Agent, command: StartAttempt) -> None:
        agent.attempt = agent.newest = command.attempt
        agent.ranks, agent.world_size = command.ranks, command.world_size
        first = command.restore[0] if command.restore else None
        step = first.step if first else 0
        agent.memory = [shard for shard in agent.memory if shard.step <= step]
        self._say(agent, RanksStarted, attempt=command.attempt, ranks=command.ranks)
        for rank in command.ranks if self.joins else ():
            self._say(agent, RankReady, attempt=command.attempt, rank=rank)
        for rank in command.ranks if self.joins and self.restores else ():
            self._say(
                agent,
                RankRestored,
                attempt=command.attempt,
                rank=rank,
                step=step,
                checkpoint=first.id if first else "",
            )

    def _stop(self, agent: Agent, attempt: int) -> None:
        agent.newest = max(agent.newest, attempt)
        if agent.attempt <= attempt:
            agent.attempt = 0
        self._say(
            agent,
            AttemptStopped,
            attempt=attempt,
            port=20001,
            memory_shards=tuple(agent.memory),
            last_step=self.step(agent.run) if agent.run in self.state.attempts else 0,
        )

    def _say(self, agent: Agent, kind: type[Event], **fields: object) -> None:
        self.messages.append(self.event(kind, run=agent.run, worker=agent.worker, **fields))

    def _gone(self, worker: str, run: str, reason: str) -> None:
        self.messages.append(
            self.event(WorkerLost, run=run, worker=worker, confirmed=True, reason=reason)
        )

    def kill_agent(self, worker: str, reason: str = "killed by SIGKILL") -> None:
        """The agent and all its ranks die; the cluster says so."""
        agent = self.agents.get(worker)
        if agent is None:
            return
        agent.alive, agent.attempt, agent.ranks = False, 0, ()
        self._gone(worker, agent.run, reason)
