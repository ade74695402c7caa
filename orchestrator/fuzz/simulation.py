"""One run of the fuzzer, from a plan to its outcome.

First comes chaos: the faults of the plan at their times, and those that strike by themselves. Then
comes calm: nothing fails any more, users clear up, and within :data:`PATIENCE_SECONDS` every run
must have ended, its workers be gone and the outbox be empty. A system that merely never does wrong
could do so by standing still; the calm is what finds that.
"""

from __future__ import annotations

import contextvars
import dataclasses
import hashlib
from collections.abc import Iterator

from orchestrator.fuzz import faults, placement_invariants, users
from orchestrator.fuzz.event_loop import WORLD, WORLD_CONTEXT, rest
from orchestrator.fuzz.flaky_database import CURRENT
from orchestrator.fuzz.log import heard
from orchestrator.fuzz.plan import Choice, Fault, Plan, draw
from orchestrator.fuzz.wakeups import ForgottenDecisions
from orchestrator.fuzz.world import World

PATIENCE_SECONDS = 2400.0
"""Virtual seconds after the last fault in which every run must have ended: the longest script takes
120 s, and each of the most restarts that budgets allow as much again."""
_LOOK_SECONDS = 2.0
_BOOT_SECONDS = 31.0
"""After the calm begins: the last fault that keeps a server down has ended by then."""
_CONTACT_SECONDS = 60.0
"""After a server has begun to lead, agents have found it by then."""
_LOST_RUN = "run not in the database"
"""The beginning of what the log says of a run that a restored backup does not have."""
_OVERDUE_SECONDS = 45.0
"""A command to an agent in contact is late when it takes longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of the fuzzer ended.

    Attributes:
        broken: The invariant that was broken, in a sentence; empty: none.
        journal: A hash over the journal: equal runs have equal ones.
        turns: Transactions checked.
        seconds: Virtual seconds that passed.
        faults: Faults of the plan that fell.
        trace: What happened, oldest first.
    """

    broken: str
    journal: str
    turns: int
    seconds: float
    faults: tuple[Fault, ...]
    trace: tuple[str, ...]


def run_plan(plan: Plan, choice: Choice) -> Outcome:
    """Let a plan happen, to its end or to the first broken invariant. Equal calls, equal ends."""
    return _Simulation(plan, choice).run()


def run_seed(seed: int, choice: Choice) -> Outcome:
    """Let the plan of a seed happen."""
    return run_plan(draw(seed), choice)


class _Simulation:
    """A world, and what happens in it."""

    def __init__(self, plan: Plan, choice: Choice) -> None:
        self._plan, self._choice = plan, choice
        self._world = World(plan, choice.kinds)
        self._invariants, self._loop = self._world.invariants, self._world.loop
        self._leaders: tuple[str, ...] = ()
        self._leading_since = 0.0
        self._forgotten = ForgottenDecisions()

    def run(self) -> Outcome:
        """See :func:`run_plan`."""
        with heard(self._overheard, self._world.log):
            outcome = contextvars.copy_context().run(self._run)
            # Tasks that are left over end now; what they still want to write must not be written.
            self._world.database.away = True
            self._loop.close()
        return outcome

    def _run(self) -> Outcome:
        world = self._world
        CURRENT.set(world.database)
        WORLD_CONTEXT.run(CURRENT.set, world.database)
        fallen = tuple(fault for fault in self._plan.faults if self._choice.admits(fault))
        for server in world.servers:
            server.boot()
        for submission in self._plan.submissions:
            self._loop.spawn(WORLD, users.submit(world, submission))
        for fault in fallen:
            self._loop.call_at(fault.at, self._strike, fault)
        self._loop.call_at(self._plan.calm_at, self._calm)
        self._loop.run(self._loop.spawn(WORLD, self._watch()))
        world.database.undo_open()  # the audit must not see what a server is about to write
        self._invariants.audit()
        return Outcome(
            broken=self._invariants.broken,
            journal=self._digest(),
            turns=self._invariants.turns,
            seconds=self._loop.time(),
            faults=fallen,
            trace=tuple(f"{at:9.3f}  {what}" for at, what in world.trace.lines),
        )

    def _strike(self, fault: Fault) -> None:
        self._world.trace.add(f"fault {fault.number}: {fault.kind}")
        faults.STRIKES[fault.kind](self._world, self._world.random(f"fault {fault.number}"))

    def _calm(self) -> None:
        """No more faults: what is away comes back, nodes when their time has come."""
        world = self._world
        world.trace.add("no more faults")
        world.rates.clear()
        world.database.away = world.cluster.away = world.log.fails = False
        for server in world.servers:
            faults.later(world, _BOOT_SECONDS, server.boot)
        self._loop.spawn(WORLD, users.clear_up(world))

    async def _watch(self) -> None:
        """Look on until an invariant is broken, everything is done, or patience ends."""
        end = self._plan.calm_at + PATIENCE_SECONDS
        while not self._invariants.broken:
            await rest(self._loop, _LOOK_SECONDS)
            if self._loop.failures:
                self._invariants.breaks(self._loop.failures[0])
            if self._loop.time() < self._plan.calm_at:
                continue
            calm_since = max(self._led_since(), self._plan.calm_at)
            if self._loop.time() > calm_since + _CONTACT_SECONDS:
                for sentence in self._late():
                    self._invariants.breaks(sentence)
            left = next(self._invariants.unfinished(), None)
            left = left or next(self._world.strays(), None)
            if left is None and self._world.wanted.keys() <= self._invariants.stored.runs.keys():
                return
            if self._loop.time() > end:
                self._invariants.breaks(f"{PATIENCE_SECONDS:.0f} s after the last fault, {left}")

    def _late(self) -> Iterator[str]:
        """Sentences about overdue work."""
        yield from self._invariants.overdue(_OVERDUE_SECONDS)
        for server in self._world.servers:
            if server.controller is not None and server.leads:
                now, seconds = server.clock.now(), self._loop.time()
                yield from self._forgotten.check(server.controller.state, now, seconds)
        if self._invariants.right_clocks:
            now = self._world.clock.now()
            yield from placement_invariants.late_maintenance(self._invariants.stored, now)

    def _led_since(self) -> float:
        """The virtual second since which one server has led, to within a look."""
        leaders = tuple(server.process for server in self._world.servers if server.leads)
        if leaders != self._leaders or not leaders:
            self._leaders, self._leading_since = leaders, self._loop.time()
        return self._leading_since

    def _overheard(self, level: str, what: str) -> None:
        """Record a log line; a line of level error or critical breaks a promise."""
        self._world.trace.add(f"    log: {what}")
        lost = what.startswith(_LOST_RUN) and self._invariants.went_back
        if level in {"error", "critical"} and not lost:
            self._invariants.breaks(f"the log says: {what}")

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for row in self._world.database.raw.execute("SELECT * FROM journal ORDER BY position"):
            digest.update(repr(row).encode())
        return digest.hexdigest()
