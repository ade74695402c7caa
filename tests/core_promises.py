"""What the core promises, checked after every event and every rule of a state machine.

The promises are those of the design: a run has one live attempt at most, what is over stays over,
every run ends or waits for a named reason, only trusted checkpoints are offered, holds hold, and so
on. Where possible they are checked from what the world did, not from the core's own counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable

from hypothesis.stateful import RuleBasedStateMachine, invariant

from babysit.wire import Tier
from jobs.commands import StartAttempt
from jobs.events import (
    Event,
)
from monitors.failures import Cause, FailureClass
from orchestrator.core.machine import handle
from orchestrator.core.messages.events import (
    EVENT,
    RunReleased,
)
from orchestrator.core.messages.instructions import (
    INSTRUCTION,
    IncidentUpdate,
    Instruction,
    LaunchWorker,
    Notify,
    Record,
    SendCommand,
)
from orchestrator.core.model.derived import Derived
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.core.model.time_ledger import totals
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot
from orchestrator.core.policy.recovery import LAUNCH_TRIES
from orchestrator.core.views.explain import explain
from tests.world import World, each_for_itself, reloaded

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


class CorePromises(RuleBasedStateMachine):
    """Invariants over `world`, a :class:`CountingWorld`; the rules are those of a subclass."""

    def watch(self, world: CountingWorld) -> None:
        """Check the promises in this world from now on."""
        self.world = world
        self.world.after = self.after_each_event
        self.past: dict[str, tuple[int, int]] = {}
        self.numbers: dict[str, int] = {}
        self.held: set[str] = set()
        self.over: dict[str, RunState] = {}
        self.checked = 0
        self.steps: dict[str, int] = {}

    @invariant()
    def the_snapshot_keeps_what_it_would_find_anew(self) -> None:
        state, now = self.world.state, self.world.now
        kept = snapshot.snapshot(state, now)
        facts, state.derived = state.derived, Derived()
        assert kept == snapshot.snapshot(state, now)
        state.derived = facts  # else nothing would ever be kept from one event to the next

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
                quiet = isinstance(instruction, (Record, Notify, IncidentUpdate))
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
            whole = len(attempt.restored_ranks) == attempt.world_size
            if whole and attempt.first_step_at is not None:
                self.past[run] = attempt.number, attempt.start_step  # what it trains on from
        self._check_holds(instructions)

    def _check_offer(self, run: str, command: StartAttempt, why: str) -> None:
        """When offered: complete at least; after an anomaly good, and from before its onset."""
        restart = self.world.state.attempts[run].restart
        asked = restart is None or restart.cause in {Cause.ANOMALY, Cause.OPERATOR}
        assert command.restore or asked or not self._loadable(run), "begins again, unasked"
        for candidate in command.restore:
            known = self.world.state.checkpoints[candidate.id]
            assert known.trust not in {Trust.WRITING, Trust.BAD}, (why, known)
            assert not known.doubted, (why, known)
            assert not known.superseded, (why, known)
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
        return [
            c.id
            for c in self.world.state.checkpoints_of(run)
            if c.tier is Tier.DIRECTORY
            and c.deleted_at is None
            and c.trust in {Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD}
            and not c.superseded
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
        assert picture(reloaded(state)) == picture(reloaded(self.world.state))


def picture(state: State) -> dict[str, object]:
    """All that is stored of a state, to compare."""
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
