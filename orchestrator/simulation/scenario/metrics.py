"""Counters of a running simulation. They see only what the run database would see."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Entity, Fleet, Incident, Node, Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES, NodeState, RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.simulation.scenario.virtual_time import Engine

LOSSES = (Bucket.STALLED, Bucket.STARTING, Bucket.RESTORING, Bucket.LOST, Bucket.CHECKPOINTING)
"""Buckets of time that is allocated but not productive."""
FIRST_START, SAVES = "first start", "saves"
_SAMPLES = 200
"""Points of each curve over time."""


@dataclasses.dataclass(slots=True)
class RunTally:
    """The history of one run."""

    run: Run
    """The current run, or the final one once it has ended."""
    gpus: int
    blame: str = FIRST_START
    """Cause of its last stop: a failure, or a request (`preempted`, `as asked` …)."""
    blamed_in: int = 0
    """The attempt in which the run stopped for that cause."""
    losses: dict[tuple[str, str], float] = dataclasses.field(
        default_factory=lambda: defaultdict(float)
    )
    """Lost wall seconds by cause and bucket."""
    states: list[tuple[float, RunState]] = dataclasses.field(default_factory=list)
    """Each state with the second at which the run entered it."""
    first_wait: float | None = None
    """Seconds from submission to the first nodes; None: it has had none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One point of the curves; counts of runs are means since the sample before."""

    day: float
    allocated: float
    """Allocated GPU seconds so far."""
    productive: float
    busy_nodes: int
    queued: float
    running: float
    recovering: float


class Tally:
    """Counters. The world reports disturbances; everything else comes from changes of the core."""

    def __init__(self, engine: Engine, busy_nodes: Callable[[], int]) -> None:
        self._engine, self._busy_nodes = engine, busy_nodes
        self.runs: dict[str, RunTally] = {}
        self.restarts: dict[tuple[str, int], Restart] = {}
        self.incidents: Counter[str] = Counter()
        self.marks: list[tuple[float, str, str]] = []
        """Every disturbance: second, run, cause."""
        self.samples: list[Sample] = []
        self.freezes: list[tuple[float, float | None]] = []
        """Seconds at which the breaker froze automation and at which it was released."""
        self.cordoned: set[str] = set()
        """Nodes that automation has cordoned at any time."""
        self._seen: set[str] = set()
        self._states: Counter[RunState] = Counter()
        """Number of live runs by state, now."""
        self._state_seconds: dict[RunState, float] = defaultdict(float)
        """Seconds spent by state, summed over all runs since the last sample."""
        self._counted_at = self._sampled_at = 0.0

    def stopped(self, run: str, by: str) -> None:
        """Record that a failure stopped a run; time lost from now on is booked on it."""
        tally = self.runs[run]
        tally.blame, tally.blamed_in = by, tally.run.attempt
        self.marked(run, by)

    def marked(self, run: str, by: str) -> None:
        """Record that a failure disturbed a run without stopping it."""
        self.marks.append((self._engine.now, run, by))

    def changed(self, entities: Iterable[Entity]) -> None:
        """Count the changes of one turn of the core."""
        for entity in entities:
            match entity:
                case Run():
                    self._run(entity)
                case Attempt(restart=Restart() as restart):
                    self.restarts[entity.run, entity.number] = restart
                case Incident() if entity.id not in self._seen:
                    self._seen.add(entity.id)
                    self.incidents[entity.kind.value] += 1
                case Node(state=NodeState.CORDONED, by="babysit"):
                    self.cordoned.add(entity.id)
                case Fleet():
                    self._fleet(entity)

    def _run(self, run: Run) -> None:
        tally = self.runs.get(run.id)
        if tally is None:
            need = run.spec.resources
            tally = RunTally(run, need.min_nodes * max(1, need.gpus_per_node))
            self.runs[run.id] = tally
        self._book(tally, tally.run, run)
        if not tally.states or tally.states[-1][1] is not run.state:
            self._count_states()
            self._states.subtract(state for _, state in tally.states[-1:])
            self._states[run.state] += 1
            tally.states.append((self._engine.now, run.state))
        if tally.first_wait is None and run.workers_made:
            tally.first_wait = (self._engine.moment() - run.submitted_at).total_seconds()
        tally.run = run
        if run.decision is not None and tally.blamed_in != run.attempt:
            # Nothing failed in this attempt: another run or a person has stopped it.
            tally.blame, tally.blamed_in = run.decision.restart.remedy.value, run.attempt

    @staticmethod
    def _book(tally: RunTally, old: Run, new: Run) -> None:
        """Book the time lost since the last change on the last disturbance of the run."""
        if new.ledger is old.ledger:
            return
        for bucket in LOSSES:
            more = new.ledger.seconds.get(bucket, 0.0) - old.ledger.seconds.get(bucket, 0.0)
            if more:
                cause = SAVES if bucket is Bucket.CHECKPOINTING else tally.blame
                tally.losses[cause, bucket.value] += more

    def _fleet(self, fleet: Fleet) -> None:
        open_ = bool(self.freezes) and self.freezes[-1][1] is None
        if fleet.hold is not None and fleet.hold_by == "babysit" and not open_:
            self.freezes.append((self._engine.now, None))
        elif fleet.hold is None and open_:
            self.freezes[-1] = (self.freezes[-1][0], self._engine.now)

    def sample_until(self, end: float) -> None:
        """Schedule the samples, evenly up to second `end`."""
        for place in range(1, _SAMPLES + 1):
            self._engine.at(end * place / _SAMPLES, self._sample)

    def _count_states(self) -> None:
        """Add up how long runs have been in their states."""
        seconds = self._engine.now - self._counted_at
        for state, runs in self._states.items():
            self._state_seconds[state] += runs * seconds
        self._counted_at = self._engine.now

    def _sample(self) -> None:
        now = self._engine.moment()
        allocated = productive = 0.0
        for tally in self.runs.values():
            seconds = time_ledger.totals(tally.run.ledger, tally.run.ended_at or now)
            productive += seconds[Bucket.PRODUCTIVE] * tally.gpus
            allocated += (sum(seconds.values()) - seconds[Bucket.QUEUED]) * tally.gpus
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
        """Close the open buckets of all live runs at the end of the scenario."""
        now = self._engine.moment()
        for tally in self.runs.values():
            run = tally.run
            if run.state not in TERMINAL_RUN_STATES:
                book = time_ledger.switch(run.ledger, run.ledger.bucket, now)
                self._run(dataclasses.replace(run, ledger=book))
