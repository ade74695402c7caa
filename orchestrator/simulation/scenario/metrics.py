"""What is counted while a simulation runs. It sees what the run database would see."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Attempt, Entity, Fleet, Incident, Node, Restart, Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES, NodeState, RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.simulation.scenario.virtual_time import Engine

LOSSES = (Bucket.STALLED, Bucket.STARTING, Bucket.RESTORING, Bucket.LOST, Bucket.CHECKPOINTING)
"""Allocated, and not productive."""
FIRST_START, SAVES = "first start", "saves"
_SAMPLES = 200
"""Points of the curves over time."""


@dataclasses.dataclass(slots=True)
class RunTally:
    """One run, as it went."""

    run: Run
    """As it is now, or was at its end."""
    gpus: int
    blame: str = FIRST_START
    """What stopped it last: a failure, or what was asked of it (`preempted`, `as asked` …)."""
    blamed_in: int = 0
    """During which attempt that was."""
    losses: dict[tuple[str, str], float] = dataclasses.field(
        default_factory=lambda: defaultdict(float)
    )
    """Wall seconds by cause and bucket."""
    states: list[tuple[float, RunState]] = dataclasses.field(default_factory=list)
    """Since when it was in which."""
    first_wait: float | None = None
    """Seconds from submission to its first nodes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The whole at one moment; runs by state are means since the sample before."""

    day: float
    allocated: float
    """GPU seconds so far."""
    productive: float
    busy_nodes: int
    queued: float
    running: float
    recovering: float


class Tally:
    """Counts. What meets runs is told by the world, all else it reads off the core's changes."""

    def __init__(self, engine: Engine, busy_nodes: Callable[[], int]) -> None:
        self._engine, self._busy_nodes = engine, busy_nodes
        self.runs: dict[str, RunTally] = {}
        self.restarts: dict[tuple[str, int], Restart] = {}
        self.incidents: Counter[str] = Counter()
        self.marks: list[tuple[float, str, str]] = []
        """When, which run, what: every disturbance."""
        self.samples: list[Sample] = []
        self.freezes: list[tuple[float, float | None]] = []
        """When the breaker froze automation, and when it was released."""
        self.cordoned: set[str] = set()
        """Nodes that automation ever cordoned."""
        self._seen: set[str] = set()
        self._states: Counter[RunState] = Counter()
        """Live runs, now."""
        self._state_seconds: dict[RunState, float] = defaultdict(float)
        """Of all runs, since the last sample."""
        self._counted_at = self._sampled_at = 0.0

    def stopped(self, run: str, by: str) -> None:
        """A failure meets a run, and stops it: what is lost from now on is lost to it."""
        known = self.runs[run]
        known.blame, known.blamed_in = by, known.run.attempt
        self.marked(run, by)

    def marked(self, run: str, by: str) -> None:
        """A failure meets a run, which goes on."""
        self.marks.append((self._engine.now, run, by))

    def changed(self, entities: Iterable[Entity]) -> None:
        """What a turn of the core changed."""
        for entity in entities:
            match entity:
                case Run():
                    self._run(entity)
                case Attempt(restart=Restart() as restart):
                    self.restarts[entity.run, entity.number] = restart
                case Incident() if entity.id not in self._seen:
                    self._seen.add(entity.id)
                    self.incidents[entity.kind] += 1
                case Node(state=NodeState.CORDONED, by="babysit"):
                    self.cordoned.add(entity.id)
                case Fleet():
                    self._fleet(entity)

    def _run(self, run: Run) -> None:
        known = self.runs.get(run.id)
        if known is None:
            need = run.spec.resources
            known = RunTally(run, need.min_nodes * max(1, need.gpus_per_node))
            self.runs[run.id] = known
        self._book(known, known.run, run)
        if not known.states or known.states[-1][1] is not run.state:
            self._count_states()
            self._states.subtract(state for _, state in known.states[-1:])
            self._states[run.state] += 1
            known.states.append((self._engine.now, run.state))
        if known.first_wait is None and run.workers_made:
            known.first_wait = (self._engine.moment() - run.submitted_at).total_seconds()
        known.run = run
        if run.decision is not None and known.blamed_in != run.attempt:
            # Nothing failed in this attempt: others, or people, want it to stop.
            known.blame, known.blamed_in = run.decision.restart.remedy, run.attempt

    @staticmethod
    def _book(known: RunTally, old: Run, new: Run) -> None:
        """Blame what time was lost since the last change on what disturbed the run last."""
        if new.ledger is old.ledger:
            return
        for bucket in LOSSES:
            more = new.ledger.seconds.get(bucket, 0.0) - old.ledger.seconds.get(bucket, 0.0)
            if more:
                cause = SAVES if bucket is Bucket.CHECKPOINTING else known.blame
                known.losses[cause, bucket.value] += more

    def _fleet(self, fleet: Fleet) -> None:
        open_ = bool(self.freezes) and self.freezes[-1][1] is None
        if fleet.hold is not None and fleet.hold_by == "babysit" and not open_:
            self.freezes.append((self._engine.now, None))
        elif fleet.hold is None and open_:
            self.freezes[-1] = (self.freezes[-1][0], self._engine.now)

    def sample_until(self, end: float) -> None:
        """Take the points of the curves, evenly over time."""
        for place in range(1, _SAMPLES + 1):
            self._engine.at(end * place / _SAMPLES, self._sample)

    def _count_states(self) -> None:
        """How long runs were in their states, up to now."""
        seconds = self._engine.now - self._counted_at
        for state, runs in self._states.items():
            self._state_seconds[state] += runs * seconds
        self._counted_at = self._engine.now

    def _sample(self) -> None:
        now = self._engine.moment()
        allocated = productive = 0.0
        for known in self.runs.values():
            seconds = time_ledger.totals(known.run.ledger, known.run.ended_at or now)
            productive += seconds[Bucket.PRODUCTIVE] * known.gpus
            allocated += (sum(seconds.values()) - seconds[Bucket.QUEUED]) * known.gpus
        self._count_states()
        length = self._engine.now - self._sampled_at
        states = {state: seconds / length for state, seconds in self._state_seconds.items()}
        self._state_seconds.clear()
        self._sampled_at = self._engine.now
        self.samples.append(
            Sample(
                day=self._engine.now / 86_400.0,
                allocated=allocated,
                productive=productive,
                busy_nodes=self._busy_nodes(),
                queued=states.get(RunState.QUEUED, 0.0),
                running=states.get(RunState.RUNNING, 0.0),
                recovering=states.get(RunState.RECOVERING, 0.0)
                + states.get(RunState.STARTING, 0.0),
            )
        )

    def close(self) -> None:
        """The scenario ends: count the open buckets of what still lives."""
        now = self._engine.moment()
        for known in self.runs.values():
            run = known.run
            if run.state not in TERMINAL_RUN_STATES:
                book = time_ledger.switch(run.ledger, Bucket(run.ledger.bucket), now)
                self._run(dataclasses.replace(run, ledger=book))
