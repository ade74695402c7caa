"""The plan of a run of the fuzzer, drawn from its seed before it begins.

A change of what is drawn here, or of its order, gives every seed another plan.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator

from jobs.spec import RunSpec
from orchestrator.core.messages.events import NodeInfo
from orchestrator.fuzz.fault_rates import AMBIENT

PLANNED = (
    "server_killed",
    "server_paused",
    "server_stopped",
    "agent_killed",
    "node_lost",
    "partition",
    "database_away",
    "cluster_away",
    "clock_jump",
    "rank_killed",
    "hang",
    "bad_data",
    "bad_save",
    "operator",
    "administrator",
)
"""Kinds of fault that come at a time of the plan. `operator`: a user makes a request about runs;
`administrator`: one that sets a quota or the spares, or plans maintenance."""
STORAGE = ("disk_full", "memory_lost")
"""Kinds of fault of the storage, with a chance of their own."""
GATEWAY = ("failing_log", "old_agent", "unreadable_report", "backup_restored")
"""Kinds of fault between agents, gateway and database, with a chance of their own."""
FAULT_KINDS = AMBIENT + PLANNED + STORAGE + GATEWAY
_WEIGHTS = (6, 3, 1, 3, 2, 4, 2, 1, 2, 4, 2, 3, 3, 10, 0)
_CHAOS_SECONDS = (30.0, 90.0)
_MOST_FAULTS = 22
_MOST_ADMINISTRATORS = 6
_ADMINISTRATORS_SHARE = 0.6
"""Share of the time before the calm: early, so that quotas meet the runs that come later."""
QUEUES = ("default", "research", "product")


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the plan."""

    number: int
    """Names it; from 1."""
    at: float
    """Virtual seconds since the run of the fuzzer began."""
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Submission:
    """A run, and when it is submitted."""

    at: float
    run: str
    spec: RunSpec
    steps: int
    step_seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The part of a plan that is to happen.

    Attributes:
        kinds: The kinds of fault that are on.
        only: Numbers of the faults that fall; None: all.
    """

    kinds: frozenset[str] = frozenset(FAULT_KINDS)
    only: frozenset[int] | None = None

    def admits(self, fault: Fault) -> bool:
        """True if a fault is to happen."""
        return fault.kind in self.kinds and (self.only is None or fault.number in self.only)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A run of the fuzzer, as far as it is decided before it begins."""

    seed: int
    nodes: tuple[NodeInfo, ...]
    servers: int
    submissions: tuple[Submission, ...]
    faults: tuple[Fault, ...]
    calm_at: float
    """From here on no fault comes."""


def draw(seed: int) -> Plan:
    """The plan of a seed: always the same."""
    rng = random.Random(f"{seed} plan")
    nodes = tuple(NodeInfo(id=f"node-{i + 1}", cpus=2) for i in range(rng.randint(2, 6)))
    calm_at = rng.uniform(*_CHAOS_SECONDS)
    runs = range(1, rng.choice((1, 1, 2, 2, 3)) + 1)
    kinds = rng.choices(PLANNED, _WEIGHTS, k=rng.randint(2, _MOST_FAULTS))
    faults = [(rng.uniform(1.0, calm_at), kind) for kind in kinds]
    faults += [
        (rng.uniform(0.5, _ADMINISTRATORS_SHARE * calm_at), "administrator")
        for _ in range(rng.randint(0, _MOST_ADMINISTRATORS))
    ]
    planned = tuple(Fault(i, at, kind) for i, (at, kind) in enumerate(sorted(faults), 1))
    storage = tuple(_of_storage(seed, len(planned), calm_at))
    before = len(planned) + len(storage)
    return Plan(
        seed=seed,
        nodes=nodes,
        servers=rng.choice((1, 2, 2)),
        submissions=tuple(_submission(rng, number, len(nodes)) for number in runs),
        faults=(*planned, *storage, *_of_the_gateway(seed, before, calm_at)),
        calm_at=calm_at,
    )


def _of_storage(seed: int, others: int, calm_at: float) -> Iterator[Fault]:
    """Faults of the storage, numbered after the others: each run has those it always had."""
    rng = random.Random(f"{seed} storage")
    for number in range(others + 1, others + 1 + rng.choice((0, 0, 1, 2, 3))):
        yield Fault(number, rng.uniform(1.0, calm_at), rng.choice(STORAGE))


def _of_the_gateway(seed: int, others: int, calm_at: float) -> Iterator[Fault]:
    """Faults of agents, log and database, numbered after the others, for the same reason."""
    rng = random.Random(f"{seed} gateway")
    for number in range(others + 1, others + 1 + rng.choice((0, 0, 1, 1, 2, 4))):
        yield Fault(number, rng.uniform(1.0, calm_at), rng.choice(GATEWAY))


def _submission(rng: random.Random, number: int, nodes: int) -> Submission:
    every = rng.randint(3, 8)
    spec = RunSpec.model_validate(
        {
            "name": f"run-{number}",
            "command": ["python", "train.py"],
            "queue": rng.choice(QUEUES),
            "project": rng.choice(("blue", "green")),
            "priority": rng.choice(("low", "normal", "high", "critical")),
            "placement": {"standbys": rng.choice((0, 0, 0, 1))},
            "resources": {
                "nodes": _size(rng, nodes),
                "processes_per_node": rng.choice((1, 1, 2)),
            },
            "checkpoint": {
                "directory": f"/checkpoints/RUN-{number}",  # two live runs never share one
                "every_steps": every,
                "memory_every_steps": rng.choice((0, 0, 1, 2)),
                "keep": rng.randint(1, 3),
                "good_after_steps": rng.randint(1, 6),
            },
            "monitors": {
                "loss_spike": {
                    "action": rng.choice(("act", "act", "act", "observe", "ask")),
                    "skip_batches": rng.choice((0, 4, 8)),
                    "warmup_steps": 5,
                },
                "hang": {
                    "action": rng.choice(("act", "act", "act", "observe", "ask")),
                    "after": 10.0,
                    "starting": 60.0,
                },
            },
            "recovery": {"infrastructure": rng.randint(3, 8), "user": 1, "anomaly": 2},
            "max_runtime": rng.choice((None, None, None, None, None, None, 150.0)),
        }
    )
    return Submission(
        at=rng.uniform(0.0, rng.choice((15.0, 40.0))),
        run=f"RUN-{number}",
        spec=spec,
        steps=rng.randint(8, 40),
        step_seconds=rng.uniform(0.8, 3.0),
    )


def _size(rng: random.Random, nodes: int) -> int | dict[str, int]:
    """Nodes of a gang; some are elastic."""
    most = min(nodes, rng.choice((1, 2, 2, 3)))
    return {"min": rng.randint(1, most), "max": most} if rng.random() < 0.2 else most


def parse_kinds(names: Iterable[str]) -> frozenset[str]:
    """Names of kinds of fault.

    Raises ValueError for one that there is not.
    """
    found = frozenset(name for name in names if name)
    unknown = found - set(FAULT_KINDS)
    if unknown:
        raise ValueError(
            f"no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULT_KINDS)}"
        )
    return found
