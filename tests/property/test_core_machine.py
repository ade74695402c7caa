"""Random interleavings never break the core's promises.

Agents' messages are delivered in any order, twice, or long after their time; ranks, agents and
operators do what they like; timers fire. The promises are those of :mod:`tests.core_promises`.
"""

from __future__ import annotations

import datetime as dt

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from jobs.events import (
    CheckpointChecked,
    RankRestored,
    RejectedCheckpoint,
    SaveFailed,
    WorkerEvent,
)
from monitors.failures import Evidence, Failure, FailureClass
from monitors.types import FindingKind
from orchestrator.core.messages.cluster_events import WorkerLeaving, WorkerStuck
from orchestrator.core.messages.events import (
    CapacityChanged,
    CheckpointPinned,
    CheckpointRemovalAsked,
    IncidentChanged,
    MaintenanceDue,
    MaintenancePlanned,
    NodeChanged,
    NodeInfo,
    QueueChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunHeld,
    RunReleased,
    SparesChanged,
    WorkerLost,
    WorkerRegained,
)
from orchestrator.core.messages.instructions import (
    SendCommand,
)
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    AttemptState,
    IncidentState,
)
from orchestrator.core.scheduling import Quota
from orchestrator.errors import ConflictError, InvalidError, NotFoundError
from tests.core_promises import BUDGETS, RUNS, CorePromises, CountingWorld, picture
from tests.world import spec

FAILURES = (
    Failure(failure_class=FailureClass.SIGNAL, reason="killed by SIGKILL", signature="SIGKILL"),
    Failure(failure_class=FailureClass.USER_CODE, reason="ValueError: x", signature="ValueError"),
    Failure(failure_class=FailureClass.CASCADE, reason="closed by peer", signature="closed"),
    Failure(
        failure_class=FailureClass.GPU_HARDWARE,
        reason="Xid 79",
        signature="xid 79",
        source=Evidence.KERNEL,
    ),
    Failure(failure_class=FailureClass.GPU_INTERCONNECT, reason="NVLink", signature="nvlink"),
    Failure(failure_class=FailureClass.UNKNOWN, reason="exit code 3", signature="exit 3", code=3),
)


class CoreMachine(CorePromises):
    """The core among unreliable messengers."""

    @initialize(
        nodes=st.integers(2, 4),
        trained=st.booleans(),
        asks=st.booleans(),
        priorities=st.tuples(*[st.sampled_from(["low", "normal", "high"])] * 2),
        shape=st.sampled_from([2, {"min": 1, "max": 2}, {"min": 1, "max": 3}]),
    )
    def begin(
        self, nodes: int, trained: bool, asks: bool, priorities: tuple[str, str], shape: object
    ) -> None:
        self.watch(CountingWorld(nodes=nodes, slow=True))
        action = {"action": "ask" if asks else "act"}
        for run, priority in zip(RUNS, priorities, strict=True):
            second = run == "run-2"
            asked = spec(
                run,
                recovery=BUDGETS,
                monitors={"loss_spike": action, "hang": action} if second else {},
                priority=priority,
                resources={"nodes": shape if second else 2},
                placement={"standbys": int(nodes == 4 and not second)},
            )
            self.world.submit(asked, run)
        if trained:  # most of what can go wrong needs a gang that runs
            for run in RUNS:
                self.train_well(run, 3)

    # messages

    @precondition(lambda self: self.world.messages)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        i = data.draw(st.integers(0, len(self.world.messages) - 1))
        message = self.world.messages[i] if again else self.world.messages.pop(i)
        self.world.do(message)

    @precondition(lambda self: self.world.messages)
    @rule()
    def deliver_all(self) -> None:
        for message in [*self.world.messages]:
            self.world.messages.remove(message)
            self.world.do(message)

    @rule(picks=st.lists(st.integers(0, 11), min_size=3, max_size=12))
    def bustle(self, picks: list[int]) -> None:
        """Agents obey, each its oldest command first, and messages arrive, in any order."""
        for pick in picks:
            oldest = {tell.worker: tell for tell in reversed(self.world.orders)}
            under_way = [*oldest.values(), *self.world.messages]
            if under_way:
                chosen = under_way[pick % len(under_way)]
                if isinstance(chosen, SendCommand):
                    self.world.obey(chosen)
                else:
                    self.world.messages.remove(chosen)
                    self.world.do(chosen)
                self.one_live_attempt()

    @precondition(lambda self: self.world.orders or self.world.messages)
    @rule()
    def settle(self) -> None:
        """A quiet moment: everything arrives."""
        self.world.settle()

    @precondition(lambda self: self.world.carried)
    @rule(data=st.data())
    def carry_out_again(self, data: st.DataObject) -> None:
        """A new leader does what the last one did not note down as done."""
        self.world.carry_out(data.draw(st.sampled_from(self.world.carried)))

    @rule()
    def restart(self) -> None:
        self.world.restart()

    # what is read back

    @precondition(lambda self: any(isinstance(m, CheckpointChecked) for m in self.world.messages))
    @rule(data=st.data())
    def read_back_wrong(self, data: st.DataObject) -> None:
        self._alter(data, CheckpointChecked, ok=False, error="content differs")

    @precondition(lambda self: any(isinstance(m, RankRestored) for m in self.world.messages))
    @rule(data=st.data(), step=st.sampled_from([0, 5, 10]), alone=st.booleans())
    def load_something_else(self, data: st.DataObject, step: int, alone: bool) -> None:
        """One rank, or all of them, could not load the first choice."""
        message = self._alter(data, RankRestored, step=step, checkpoint="")
        if not alone:
            self.world.messages = [
                m.model_copy(update={"step": step, "checkpoint": ""})
                if isinstance(m, RankRestored)
                and (m.run, m.attempt) == (message.run, message.attempt)
                else m
                for m in self.world.messages
            ]

    @precondition(lambda self: any(isinstance(m, RankRestored) for m in self.world.messages))
    @rule(data=st.data())
    def refuse_to_load(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.world.state.checkpoints) or ["none"]))
        refused = RejectedCheckpoint(id=chosen, reason="truncated")
        self._alter(data, RankRestored, rejected=(refused,))

    def _alter(self, data: st.DataObject, kind: type, **changes: object) -> WorkerEvent:
        """Change one message under way."""
        places = [i for i, m in enumerate(self.world.messages) if isinstance(m, kind)]
        i = data.draw(st.sampled_from(places))
        message = self.world.messages[i].model_copy(update=changes)
        self.world.messages[i] = message
        assert isinstance(message, WorkerEvent)
        return message

    @rule(seconds=st.sampled_from([1, 10, 40, 130, 400, 700]))
    def wait(self, seconds: int) -> None:
        self.world.advance(seconds)

    # the runs

    def _stepping(self, run: str) -> bool:
        attempt = self.world.state.attempts.get(run)
        return (
            run in self.world.state.runs
            and attempt is not None
            and attempt.state in {AttemptState.STARTING, AttemptState.RUNNING}
            and len(attempt.restored_ranks) == attempt.world_size
        )

    @rule(
        run=st.sampled_from(RUNS),
        steps=st.integers(1, 30),
        save=st.booleans(),
        memory=st.booleans(),
    )
    def train(self, run: str, steps: int, save: bool, memory: bool) -> None:
        if not self._stepping(run):
            return
        step = self.world.step(run) + steps
        self.world.reach(step, run)
        if save:
            self.world.save(step, run)
        seated = {seat.worker for seat in self.world.attempt(run).seats}
        if memory and all(self.world.agents[worker].alive for worker in seated):
            self.world.remember(step, run)

    @rule(run=st.sampled_from(RUNS), saves=st.integers(1, 4))
    def train_well(self, run: str, saves: int) -> None:
        """Nothing goes wrong for a while: the way to good checkpoints."""
        self.world.settle()
        for _ in range(saves):
            if self._stepping(run):
                step = self.world.step(run) // 10 * 10 + 10
                self.world.reach(step, run)
                self.world.save(step, run)
                self.world.settle()

    @rule(run=st.sampled_from(RUNS), failure=st.sampled_from(FAILURES), rank=st.integers(0, 1))
    def die(self, run: str, failure: Failure, rank: int) -> None:
        attempt = self.world.state.attempts.get(run)
        if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES:
            rank %= attempt.world_size
            self.world.die(rank, failure, last_step=self.world.step(run), run=run)

    @rule(run=st.sampled_from(RUNS), failure=st.sampled_from(FAILURES), times=st.integers(2, 7))
    def crash_loop(self, run: str, failure: Failure, times: int) -> None:
        """The same death again and again, without a new step."""
        for _ in range(times):
            self.world.settle()
            if self._stepping(run):
                self.world.die(0, failure, last_step=self.world.step(run), run=run)
                self.world.settle()
                self.world.advance(20)

    @rule(run=st.sampled_from(RUNS), back=st.integers(0, 25), times=st.integers(1, 4))
    def diverge(self, run: str, back: int, times: int) -> None:
        """After good days an anomaly, which comes back each time before a new step is reached."""
        self.train_well(run, 3)
        for _ in range(times):
            self.world.settle()
            if self._stepping(run):
                onset = max(1, self.world.step(run) - back)
                self.world.find(FindingKind.NON_FINITE, onset=onset, run=run)
                self.world.settle()

    @rule(run=st.sampled_from(RUNS))
    def end_well(self, run: str) -> None:
        if self._stepping(run):
            self.world.end(run)

    @rule(
        run=st.sampled_from(RUNS),
        kind=st.sampled_from(
            [
                FindingKind.HANG,
                FindingKind.LOSS_SPIKE,
                FindingKind.NON_FINITE,
                FindingKind.LOSS_BLIP,
                FindingKind.DATA_STALL,
            ]
        ),
        back=st.integers(0, 25),
    )
    def find(self, run: str, kind: FindingKind, back: int) -> None:
        attempt = self.world.state.attempts.get(run)
        if run in self.world.state.runs and attempt is not None:
            self.world.find(kind, onset=max(1, self.world.step(run) - back), run=run)

    @rule(run=st.sampled_from(RUNS))
    def fail_to_save(self, run: str) -> None:
        attempt = self.world.state.attempts.get(run)
        if attempt is not None:
            self.world.do(
                self.world.event(
                    SaveFailed,
                    run=run,
                    worker=attempt.seats[0].worker,
                    attempt=attempt.number,
                    rank=0,
                    step=1,
                    tier="directory",
                    error="No space left on device",
                )
            )

    # agents and nodes

    @rule(data=st.data())
    def agent_dies(self, data: st.DataObject) -> None:
        alive = [a.worker for a in self.world.agents.values() if a.alive]
        if alive:
            self.world.kill_agent(data.draw(st.sampled_from(alive)))

    @rule(data=st.data(), back=st.booleans())
    def agent_out_of_contact(self, data: st.DataObject, back: bool) -> None:
        agents = list(self.world.agents.values())
        if agents:
            agent = data.draw(st.sampled_from(agents))
            kind, fields = (WorkerRegained, {}) if back else (WorkerLost, {"confirmed": False})
            self.world.do(self.world.event(kind, run=agent.run, worker=agent.worker, **fields))

    @rule(node=st.integers(1, 4), state=st.sampled_from(["ready", "cordoned", "draining"]))
    def change_node(self, node: int, state: str) -> None:
        self._ask(NodeChanged, node=f"node-{node}", state=state, reason="test")

    # the cluster, about what is not gone

    @rule(data=st.data(), dies=st.booleans())
    def evict(self, data: st.DataObject, dies: bool) -> None:
        alive = [agent for agent in self.world.agents.values() if agent.alive]
        if alive:
            agent = data.draw(st.sampled_from(alive))
            of = {"run": agent.run, "worker": agent.worker}
            self.world.do(self.world.event(WorkerLeaving, **of, reason="evicted"))
            if dies:
                self.world.kill_agent(agent.worker)

    @rule(data=st.data(), reason=st.sampled_from(["", "no room"]), elsewhere=st.booleans())
    def not_start(self, data: st.DataObject, reason: str, elsewhere: bool) -> None:
        workers = list(self.world.state.workers.values())
        if workers:
            worker = data.draw(st.sampled_from(workers))
            of = {"run": worker.run, "worker": worker.id}
            stuck = self.world.event(WorkerStuck, **of, reason=reason, elsewhere=elsewhere)
            self.world.do(stuck)

    @rule(
        states=st.lists(st.sampled_from(["ready", "cordoned", "draining"]), min_size=4, max_size=4)
    )
    def take_inventory(self, states: list[str]) -> None:
        nodes = [
            NodeInfo(id=node.id, gpus=node.gpus, cpus=node.cpus, state=state, reason=state)
            for node, state in zip(self.world.state.nodes.values(), states, strict=False)
        ]
        self.world.do(self.world.event(CapacityChanged, nodes=tuple(nodes)))

    # operators

    @rule(gpus=st.sampled_from([None, 0, 1, 2, 4]))
    def set_quota(self, gpus: int | None) -> None:
        self._ask(QueueChanged, quota=Quota(name="default", gpus=gpus))

    @rule(spares=st.sampled_from([0, 1, "auto"]))
    def set_spares(self, spares: int | str) -> None:
        self._ask(SparesChanged, spares=spares)

    @rule(node=st.integers(1, 4), wait=st.integers(0, 100), lasts=st.integers(1, 500))
    def plan_maintenance(self, node: int, wait: int, lasts: int) -> None:
        begins = self.world.now + dt.timedelta(seconds=wait)
        ends = begins + dt.timedelta(seconds=lasts)
        names = (f"node-{node}",)
        self._ask(MaintenancePlanned, nodes=names, begins=begins, ends=ends, reason="test")

    @rule()
    def begin_maintenance(self) -> None:
        for node in self.world.state.due_maintenance(self.world.now):
            self.world.do(self.world.event(MaintenanceDue, node=node))

    @rule(run=st.sampled_from(RUNS), kind=st.sampled_from([RunHeld, RestartAsked]))
    def ask(self, run: str, kind: type) -> None:
        self._ask(kind, run=run)

    @rule(data=st.data())
    def hold_everything(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 4)) == 0:
            self._ask(RunHeld, run=None)

    @precondition(lambda self: self.world.state.checkpoints)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        checkpoint = data.draw(st.sampled_from(sorted(self.world.state.checkpoints)))
        run = checkpoint.partition("/")[0]
        self._ask(CheckpointPinned, run=run, checkpoint=checkpoint, pinned=pinned)

    @precondition(lambda self: self.world.state.checkpoints)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        checkpoint = data.draw(st.sampled_from(sorted(self.world.state.checkpoints)))
        run = checkpoint.partition("/")[0]
        self._ask(CheckpointRemovalAsked, run=run, checkpoint=checkpoint)

    @precondition(lambda self: self.world.state.incidents)
    @rule(data=st.data(), resolve=st.booleans())
    def judge(self, data: st.DataObject, resolve: bool) -> None:
        incident = data.draw(st.sampled_from(sorted(self.world.state.incidents)))
        state = IncidentState.RESOLVED if resolve else None
        self._ask(IncidentChanged, incident=incident, acknowledge=True, state=state)

    @rule(run=st.sampled_from([*RUNS, None]))
    def release(self, run: str | None) -> None:
        self._ask(RunReleased, run=run)

    @rule(run=st.sampled_from(RUNS), to=st.sampled_from([None, 0, 5, 10]))
    def roll_back(self, run: str, to: int | None) -> None:
        self._ask(RollbackAsked, run=run, to_step=to)

    @rule(run=st.sampled_from(RUNS), really=st.integers(0, 9))
    def cancel(self, run: str, really: int) -> None:
        if really == 0:
            self._ask(RunCancelled, run=run)

    def _ask(self, kind: type, **fields: object) -> None:
        event = self.world.event(kind, **fields)
        self.world.tell_news(event)
        before = picture(self.world.state)
        try:
            self.world.do(event)
        except (InvalidError, ConflictError, NotFoundError):
            assert picture(self.world.state) == before, "a refused request changed something"


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
