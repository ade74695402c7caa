"""What happens in a story, drawn from its seed before it begins."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from jobs.spec import RunSpec
from orchestrator.core.messages.events import NodeInfo
from orchestrator.fuzz.fault_rates import AMBIENT

BLOWS = (
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
    "steward",
)
"""Faults that come at a time of the plan. `operator`: people, who do as they like; `steward`: those
who set quotas and spares and plan maintenance."""
FAULTS = AMBIENT + BLOWS
_WEIGHTS = (6, 3, 1, 3, 2, 4, 2, 1, 2, 4, 2, 3, 3, 10, 0)
_CHAOS_SECONDS = (30.0, 90.0)
_MOST_BLOWS = 22
_MOST_STEWARDS = 6
_STEWARDS_SHARE = 0.6
"""Of the story until its calm: early, so that what they set meets who comes later."""
QUEUES = ("default", "research", "product")


@dataclasses.dataclass(frozen=True, slots=True)
class Blow:
    """One fault of the plan."""

    number: int
    """By which it is named; from 1."""
    at: float
    """Virtual seconds since the story began."""
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
    """What of a plan is to happen.

    Attributes:
        faults: The kinds of fault that are on.
        only: Numbers of the blows that fall; None: all.
    """

    faults: frozenset[str] = frozenset(FAULTS)
    only: frozenset[int] | None = None

    def admits(self, blow: Blow) -> bool:
        """Whether a blow falls."""
        return blow.kind in self.faults and (self.only is None or blow.number in self.only)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The story, as far as it is decided before it begins."""

    seed: int
    nodes: tuple[NodeInfo, ...]
    servers: int
    submissions: tuple[Submission, ...]
    blows: tuple[Blow, ...]
    calm_at: float
    """From here on no fault comes."""


def draw(seed: int) -> Plan:
    """The plan of a seed: always the same."""
    chance = random.Random(f"{seed} plan")
    nodes = tuple(NodeInfo(id=f"node-{i + 1}", cpus=2) for i in range(chance.randint(2, 6)))
    calm_at = chance.uniform(*_CHAOS_SECONDS)
    runs = range(1, chance.choice((1, 1, 2, 2, 3)) + 1)
    kinds = chance.choices(BLOWS, _WEIGHTS, k=chance.randint(2, _MOST_BLOWS))
    blows = [(chance.uniform(1.0, calm_at), kind) for kind in kinds]
    blows += [
        (chance.uniform(0.5, _STEWARDS_SHARE * calm_at), "steward")
        for _ in range(chance.randint(0, _MOST_STEWARDS))
    ]
    return Plan(
        seed=seed,
        nodes=nodes,
        servers=chance.choice((1, 2, 2)),
        submissions=tuple(_submission(chance, number, len(nodes)) for number in runs),
        blows=tuple(Blow(i, at, kind) for i, (at, kind) in enumerate(sorted(blows), 1)),
        calm_at=calm_at,
    )


def _submission(chance: random.Random, number: int, nodes: int) -> Submission:
    every = chance.randint(3, 8)
    spec = RunSpec.model_validate(
        {
            "name": f"run-{number}",
            "command": ["python", "train.py"],
            "queue": chance.choice(QUEUES),
            "project": chance.choice(("blue", "green")),
            "priority": chance.choice(("low", "normal", "high", "critical")),
            "placement": {"standbys": chance.choice((0, 0, 0, 1))},
            "resources": {
                "nodes": _size(chance, nodes),
                "processes_per_node": chance.choice((1, 1, 2)),
            },
            "checkpoint": {
                "directory": f"/checkpoints/RUN-{number}",  # two live runs never share one
                "every_steps": every,
                "memory_every_steps": chance.choice((0, 0, 1, 2)),
                "keep": chance.randint(1, 3),
                "good_after_steps": chance.randint(1, 6),
            },
            "monitors": {
                "loss_spike": {
                    "action": chance.choice(("act", "act", "act", "observe", "ask")),
                    "skip_batches": chance.choice((0, 4, 8)),
                    "warmup_steps": 5,
                },
                "hang": {
                    "action": chance.choice(("act", "act", "act", "observe", "ask")),
                    "after": 10.0,
                    "starting": 60.0,
                },
            },
            "recovery": {"infrastructure": chance.randint(3, 8), "user": 1, "anomaly": 2},
            "max_runtime": chance.choice((None, None, None, None, None, None, 150.0)),
        }
    )
    return Submission(
        at=chance.uniform(0.0, chance.choice((15.0, 40.0))),
        run=f"RUN-{number}",
        spec=spec,
        steps=chance.randint(8, 40),
        step_seconds=chance.uniform(0.8, 3.0),
    )


def _size(chance: random.Random, nodes: int) -> int | dict[str, int]:
    """Nodes of a gang; some are elastic."""
    most = min(nodes, chance.choice((1, 2, 2, 3)))
    return {"min": chance.randint(1, most), "max": most} if chance.random() < 0.2 else most


def parse_faults(names: Iterable[str]) -> frozenset[str]:
    """Names of kinds of fault.

    Raises ValueError for one that there is not.
    """
    found = frozenset(name for name in names if name)
    unknown = found - set(FAULTS)
    if unknown:
        raise ValueError(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    return found
