"""Random interleavings never break the core's promises.

Agents' messages are delivered in any order, twice, or long after their time; ranks, agents and
operators do what they like;
timers fire. After every event the invariants of DESIGN sections 3, 4 and 7 are checked.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import re
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from babysit.wire import Tier
from jobs.commands import StartAttempt
from jobs.events import (
    CheckpointChecked,
    Event,
    RankRestored,
    RejectedCheckpoint,
    SaveFailed,
    WorkerEvent,
)
from monitors.failures import Cause, Evidence, Failure, FailureClass
from monitors.types import FindingKind
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import (
    EVENT,
    CheckpointPinned,
    CheckpointRemovalAsked,
    IncidentChanged,
    MaintenanceDue,
    MaintenancePlanned,
    NodeChanged,
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
    INSTRUCTION,
    Instruction,
    LaunchWorker,
    Notify,
    Record,
    SendCommand,
)
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
    IncidentState,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.core.model.time_ledger import totals
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.policy.recovery import LAUNCH_TRIES
from orchestrator.core.scheduling import Quota
from orchestrator.core.views.explain import explain
from orchestrator.errors import ConflictError, InvalidError, NotFoundError
from tests.world import World, each_for_itself, reloaded, spec

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
RUNS = ("run-1", "run-2")
BUDGETS = {"infrastructure": 4, "user": 1, "anomaly": 2}
LIMITS = {**BUDGETS, "stuck": BUDGETS["infrastructure"], "launch": LAUNCH_TRIES}
_FENCED = re.compile(r"attempt (\d+) could not be confirmed dead: fenced")


@dataclasses.dataclass
class Tally:
    """Restarts of a run since it last got further than ever, counted by what it did."""

    best: int = 0
    causes: list[tuple[Cause, FailureClass]] = dataclasses.field(default_factory=list)

    def of(self, *causes: Cause) -> list[FailureClass]:
        """Classes of the restarts for these causes, in order."""
        return [failure_class for cause, failure_class in self.causes if cause in causes]


class CountingWorld(World):
    """Keeps count of what is promised, without asking the core for its own count."""

    def __post_init__(self) -> None:
        self.tallies = {run: Tally() for run in RUNS}
        self.fenced: set[tuple[str, int]] = set()
        self.furthest = dict.fromkeys(RUNS, 0)
        self.after: Callable[[Event, list[Instruction]], None] = lambda *_: None
        super().__post_init__()

    def reach(self, step: int, run: str = "run-1") -> None:
        super().reach(step, run)
        self.furthest[run] = max(self.furthest[run], step)

    def _do(self, event: Event) -> list[Instruction]:
        numbers = {run: self.state.attempts[run].number for run in self.state.attempts}
        instructions = super()._do(event)
        for instruction in instructions:
            if fenced := _FENCED.match(instruction.reason):
                self.fenced.add((str(instruction.run), int(fenced[1])))
        for run, attempt in self.state.attempts.items():
            if attempt.number > numbers.get(run, 0) and attempt.restart is not None:
                tally = self.tallies[run]
                if self.furthest[run] > tally.best:
                    tally = self.tallies[run] = Tally(best=self.furthest[run])
                tally.causes.append((attempt.restart.cause, attempt.restart.failure_class))
        if isinstance(event, RunReleased):  # a person has looked, and wants another try
            for run in RUNS if event.run is None else [event.run]:
                self.tallies[run].causes.clear()
        self.after(event, instructions)
        return instructions


class CoreMachine(RuleBasedStateMachine):
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
        self.world = CountingWorld(nodes=nodes, slow=True)
        self.world.after = self.after_each_event
        self.past: dict[str, tuple[int, int]] = {}
        self.numbers: dict[str, int] = {}
        self.held: set[str] = set()
        self.over: dict[str, RunState] = {}
        self.checked = 0
        self.steps: dict[str, int] = {}
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
        before = _picture(self.world.state)
        try:
            self.world.do(event)
        except (InvalidError, ConflictError, NotFoundError):
            assert _picture(self.world.state) == before, "a refused request changed something"

    # promises

    @invariant()
    def one_live_attempt(self) -> None:
        """Ranks of two attempts are never alive together, but for those of a fenced one."""
        for run in RUNS:
            alive = {a.attempt for a in self.world.agents.values() if a.run == run and a.attempt}
            counted = {attempt for attempt in alive if (run, attempt) not in self.world.fenced}
            assert len(counted) <= 1
            assert not counted or max(alive) in counted, "a fenced attempt is the newest alive"

    @invariant()
    def numbers_only_grow(self) -> None:
        for run, state in self.world.state.runs.items():
            assert state.attempt >= self.numbers.get(run, 0)
            self.numbers[run] = state.attempt

    @invariant()
    def no_node_is_given_twice(self) -> None:
        """They have one CPU each. Nodes are kept for nobody that has all it needs, or is held."""
        state = self.world.state
        for node in state.nodes:
            here = [w for w in state.workers_on(node) if w.state is not WorkerState.ENDED]
            assert len(here) <= 1, here
        for run in state.live_runs():
            waits = run.pending and run.state is not RunState.HELD
            assert run.claim is None or waits, run

    @invariant()
    def words_take_no_node_from_everybody(self) -> None:
        for node in self.world.state.nodes.values():
            if node.by == "babysit" and node.state is NodeState.CORDONED:
                assert "(says the kernel)" in node.reason

    @invariant()
    def nothing_after_the_end(self) -> None:
        """A run that is over stays over, and nothing is done for it any more."""
        for event, _, instructions in self.world.journal[self.checked :]:
            for instruction in instructions:
                ended = self.over.get(instruction.run or "")
                quiet = isinstance(instruction, (Record, Notify))
                assert ended is None or quiet, f"{instruction} after {ended}, on {event}"
        self.checked = len(self.world.journal)
        for run, state in self.world.state.runs.items():
            if run in self.over:
                assert state.state is self.over[run]
            elif state.state in TERMINAL_RUN_STATES:
                self.over[run] = state.state

    @invariant()
    def ends_or_waits_for_a_named_reason(self) -> None:
        state = self.world.state
        for run in state.live_runs():
            attempt = state.attempts.get(run.id)
            if attempt is not None and attempt.state is AttemptState.STOPPING:
                assert run.due(Timer.STOP) or run.due(Timer.FENCE), "a stop without a deadline"
            elif attempt is None or attempt.state not in LIVE_ATTEMPT_STATES:
                coming = any(w.state is not WorkerState.ENDED for w in state.workers_of(run.id))
                held = run.state is RunState.HELD or state.fleet.hold
                assert held or run.pending or coming or run.due(Timer.RETRY), (
                    f"{run.state}: {run.reason}"
                )
            for worker in state.workers_of(run.id):
                due = {WorkerState.LAUNCHING: Timer.LAUNCH, WorkerState.LOST: Timer.CONTACT}
                if worker.state in due:
                    assert run.due(due[worker.state], worker.id), worker
            if attempt is not None and attempt.state is AttemptState.STARTING:
                whole = len(attempt.started_ranks) == attempt.world_size
                assert whole or run.due(Timer.START), "a start without a deadline"
            assert run.reason
            assert explain(state, run.id, self.world.now).sentences

    def after_each_event(self, event: Event, instructions: list[Instruction]) -> None:
        """What must hold after each of the many events that one rule may lead to."""
        for tell in each_for_itself(instructions):
            if isinstance(tell, SendCommand) and isinstance(tell.command, StartAttempt):
                self._check_offer(tell.run or "", tell.command, event.kind)
        for run, attempt in self.world.state.attempts.items():
            if len(attempt.restored_ranks) == attempt.world_size:
                self.past[run] = attempt.number, attempt.start_step  # what it loaded is its past
        self._check_holds(instructions)

    def _check_offer(self, run: str, command: StartAttempt, why: str) -> None:
        """When offered: complete at least; after an anomaly good, and from before its onset."""
        restart = self.world.state.attempts[run].restart
        asked = restart is None or restart.cause in {Cause.ANOMALY, Cause.OPERATOR}
        assert command.restore or asked or not self._loadable(run), "begins again, unasked"
        for candidate in command.restore:
            known = self.world.state.checkpoints[candidate.id]
            assert known.trust not in {Trust.WRITING, Trust.BAD}, (why, known)
            assert len(known.ranks) == known.world_size
            if restart is not None and restart.cause is Cause.ANOMALY:
                assert known.trust is Trust.GOOD, (why, known)
                onset = self.world.state.runs[run].anomalies[-1].onset_step
                assert known.step < onset, f"{known} is from after the onset at {onset}"
            attempt, step = self.past.get(run, (0, 0))
            wanted = restart is not None and restart.cause is Cause.OPERATOR and known.pinned
            ours = known.attempt >= attempt or known.step <= step
            assert ours or wanted, f"{known} is not of the past of attempt {attempt} from {step}"

    def _loadable(self, run: str) -> list[str]:
        excluded = self.world.state.runs[run].excluded
        return [
            c.id
            for c in self.world.state.checkpoints_of(run)
            if c.tier is Tier.DIRECTORY
            and c.deleted_at is None
            and c.trust in {Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD}
            and c.id not in excluded
        ]

    def _check_holds(self, instructions: list[Instruction]) -> None:
        """What a hold (or the breaker) has frozen before an event stays frozen through it."""
        state = self.world.state
        held = {r.id for r in state.live_runs() if r.state is RunState.HELD or state.fleet.hold}
        for each in each_for_itself(instructions):
            begins = isinstance(each, LaunchWorker) or (
                isinstance(each, SendCommand) and isinstance(each.command, StartAttempt)
            )
            assert not (begins and each.run in self.held & held), each
        self.held = held

    @invariant()
    def state_stays_small(self) -> None:
        """What is in memory of workers that are gone, or was overwritten there, is forgotten."""
        for run in self.world.state.live_runs():
            workers = {w.id for w in self.world.state.workers_of(run.id)}
            for checkpoint in self.world.state.checkpoints_of(run.id):
                if checkpoint.tier is Tier.MEMORY and checkpoint.deleted_at is None:
                    assert workers >= set(checkpoint.homes.values()), checkpoint

    @invariant()
    def budgets_are_respected(self) -> None:
        for run in self.world.state.live_runs():
            for key, budget in run.budgets.items():
                limit = LIMITS.get(key)
                assert limit is None or budget.count <= limit, (key, budget)

    @invariant()
    def nothing_is_tried_for_ever(self) -> None:
        """Restarts since the run last got further than ever, as counted here."""
        for run, tally in self.world.tallies.items():
            failed = tally.of(Cause.INFRASTRUCTURE, Cause.USER)
            assert len(failed) <= BUDGETS["infrastructure"], (run, tally)
            assert len(tally.of(Cause.ANOMALY)) <= BUDGETS["anomaly"], (run, tally)
            users = tally.of(Cause.USER)
            again = [a for a, b in itertools.pairwise(users) if a is b]
            assert not again, (run, tally)

    @invariant()
    def every_second_is_booked_once(self) -> None:
        for run in self.world.state.live_runs():
            booked = sum(totals(run.ledger, self.world.now).values())
            elapsed = (self.world.now - run.submitted_at).total_seconds()
            assert abs(booked - elapsed) < 1e-3

    def teardown(self) -> None:
        """The journal, through JSON and back, replays to the same decisions and the same state."""
        if not hasattr(self, "world"):
            return
        state = State()
        for i, (event, now, instructions) in enumerate(self.world.journal):
            if i in self.world.restarts:
                state = reloaded(state)
            again = handle(state, EVENT.validate_json(event.model_dump_json()), now)
            stored = [INSTRUCTION.validate_json(i.model_dump_json()) for i in instructions]
            assert again == stored
        assert _picture(reloaded(state)) == _picture(reloaded(self.world.state))


def _picture(state: State) -> dict[str, object]:
    return {
        name: dict(getattr(state, name))
        for name in (
            "runs",
            "attempts",
            "workers",
            "nodes",
            "checkpoints",
            "incidents",
            "queues",
        )
    } | {"fleet": state.fleet}


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
