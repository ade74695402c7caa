"""The schema of a scenario: cluster, runs, failures, and the duration of recovery phases.

Durations are seconds once parsed; YAML may say `90s` or `14d`. The spec of a run is the run spec of
:mod:`jobs.spec`, and `events` are events of :mod:`orchestrator.core.messages.events`, so a scenario
can use everything that the core can do.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from jobs.spec import RunSpec
from jobs.spec_types import Bytes, Model, Name, Seconds, parse_seconds
from monitors.failures import FailureClass

Moment = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(ge=0),
    WithJsonSchema({"type": ["number", "string"], "format": "duration", "minimum": 0}),
]
"""Seconds since the start of the scenario; YAML may say `6h`."""
DAY = 86_400.0
MOST_NODES = 100_000
MOST_GPUS_PER_NODE = 1_024
MOST_FAILURES = 1_000_000
"""Limit of one failure model in one scenario; more would take hours and is a mistaken unit."""
_WIDEST = 1_000_000
_LAST_YEAR = 9_000
_SPARE_CPUS = 1024.0
"""CPUs of a simulated node: enough that GPUs alone decide the fit."""


class Spread(Model):
    """A random duration: lognormal, given by its median and 99th percentile."""

    median: Seconds
    p99: Seconds

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.p99 < self.median:
            raise ValueError(f"p99 ({self.p99:g} s) is below the median ({self.median:g} s)")
        if self.p99 > _WIDEST * self.median:
            raise ValueError(f"p99 is more than {_WIDEST:,} times the median")
        return self


Delay = Spread | Seconds
"""A duration in seconds, constant or random."""


class Cluster(Model):
    """The nodes of the simulated cluster."""

    nodes: int = Field(
        ge=1, le=MOST_NODES, description="Nodes that rates of failures are relative to."
    )
    spares: int = Field(
        default=0, ge=0, le=MOST_NODES, description="Nodes more than these, of the same kind."
    )
    gpus_per_node: int = Field(default=8, ge=0, le=MOST_GPUS_PER_NODE)
    cpus_per_node: float = Field(default=_SPARE_CPUS, gt=0)
    nodes_per_rack: int = Field(default=16, ge=1)
    racks_per_spine: int = Field(default=12, ge=1)
    repair: Delay = Field(
        default=Spread(median=4 * 3600.0, p99=DAY),
        description="From a node's failure or cordon until it takes work again.",
    )
    lemons: int = Field(default=0, ge=0, description="Nodes that fail far more often.")
    lemon_factor: float = Field(
        default=30.0, gt=0, description="Their failure rate, as a multiple."
    )

    @property
    def size(self) -> int:
        """All nodes, spares included."""
        return self.nodes + self.spares


class Recovery(Model):
    """Durations of the phases of a recovery. A gang is as slow as its slowest node.

    Each duration is drawn once for the whole gang, so give that of the slowest node; only `launch`
    is drawn per agent. The defaults are conservative values for thousands of GPUs;
    docs/simulation.md has the source of each.
    """

    exit_seen: Delay = Field(default=0.5, description="From a rank's death until it is known.")
    contact_lost: Delay = Field(
        default=15.0, description="Silence before an agent counts as out of contact."
    )
    cluster_confirms: Delay = Field(
        default=Spread(median=2.0, p99=10.0), description="Until the cluster says a node is dead."
    )
    stacks: Delay = Field(default=Spread(median=3.0, p99=7.0), description="Until stacks are in.")
    stop: Delay = Field(
        default=Spread(median=2.0, p99=10.0), description="From the order until all are dead."
    )
    launch: Delay = Field(
        default=Spread(median=30.0, p99=90.0), description="A new agent, its standby warm."
    )
    start: Delay = Field(
        default=Spread(median=3.0, p99=10.0), description="From the order until processes exist."
    )
    ready: Delay = Field(
        default=Spread(median=10.0, p99=40.0), description="The script's own start to its init."
    )
    restore: Delay = Field(
        default=Spread(median=20.0, p99=60.0), description="Loading from the directory tier."
    )
    restore_memory: Delay = Field(
        default=Spread(median=3.0, p99=10.0), description="Loading from the memory of nodes."
    )
    first_step: Delay = Field(
        default=Spread(median=15.0, p99=45.0),
        description="Extra time of the first step: communicators, compilation.",
    )
    write: Delay = Field(
        default=Spread(median=20.0, p99=60.0), description="A save's part in the background."
    )
    read_back: Delay = Field(
        default=Spread(median=20.0, p99=60.0), description="Verifying a checkpoint."
    )


class Broken(StrEnum):
    """A permanent fault of the run itself."""

    USER_ERROR = "user_error"  # the same exception at this step in every attempt
    BAD_CHECKPOINT = "bad_checkpoint"  # dies there, and again after loading the save before it


class Breaks(Model):
    """The fault of a run, and its step."""

    does: Broken
    at_step: int = Field(ge=1)


class SimulatedRun(Model):
    """One run and the characteristics of its training."""

    spec: RunSpec
    submit: Moment = 0.0
    steps: int = Field(default=10**9, ge=1, description="Steps after which it succeeds.")
    step_seconds: Seconds = 1.0
    save_seconds: Moment = Field(
        default=1.0, description="Time that a save to the directory blocks training."
    )
    memory_save_seconds: Moment = Field(
        default=0.1, description="Time that a save to memory blocks training."
    )
    bytes_per_rank: Bytes = 2**30
    cancel_after_steps: int | None = Field(default=None, ge=1)
    breaks: Breaks | None = None


class Share(Model):
    """The frequency of a size, relative to the other sizes."""

    nodes: int = Field(ge=1)
    share: float = Field(gt=0)


class Ends(Model):
    """How runs end without failures, as relative frequencies."""

    complete: float = Field(default=1.0, ge=0)
    cancel: float = Field(default=0.0, ge=0)
    fail: float = Field(default=0.0, ge=0)


class Population(Model):
    """Many similar runs, drawn at random."""

    name: Name
    count: int = Field(ge=1, le=100_000)
    over: Seconds = Field(description="They are submitted within this time, at random.")
    sizes: tuple[Share, ...] = Field(min_length=1)
    run_time: Spread
    ends: Ends = Ends()
    like: SimulatedRun = Field(description="Template of the runs; size, length and end are drawn.")


class Mishap(StrEnum):
    """The kind of a failure."""

    CRASH = "crash"  # a rank dies of `class`; its node is healthy
    GPU_FAULT = "gpu_fault"  # a rank dies of its GPU; the node must be repaired
    NODE_LOSS = "node_loss"  # the host is gone until it is repaired
    HANG = "hang"  # no rank makes progress
    LOSS_SPIKE = "loss_spike"  # the loss jumps and stays
    LOSS_BLIP = "loss_blip"  # the loss jumps and comes back
    NAN = "nan"  # the loss is not finite
    CORRUPTION = "corruption"  # silent; the finding comes `lasts` after the onset
    STRAGGLER = "straggler"  # a node, and with it the gang, is slower by `slowdown` for `lasts`
    SLOW_STORAGE = "slow_storage"  # saving and loading take `slowdown` times as long for `lasts`
    PREEMPTION = "preemption"  # the node is drained, and back after `lasts`
    OUTAGE = "outage"  # a rack or spine is out of reach for `lasts`


class FailureModel(Model):
    """A failure and its frequency.

    The rate refers to all nodes of the cluster without its spares, so `expected` is the count for a
    run on all of them. A failure on an idle node disturbs no run.
    """

    name: str = Field(min_length=1)
    does: Mishap
    failure_class: FailureClass = Field(default=FailureClass.UNKNOWN, alias="class")
    expected: float | None = Field(default=None, gt=0, description="Times in the whole scenario.")
    per_1000_node_days: float | None = Field(default=None, gt=0)
    at: tuple[Moment, ...] = Field(default=(), description="At these times, whatever the rate.")
    shape: float = Field(
        default=1.0,
        ge=0.1,
        le=20,
        description="Weibull shape of each node's times between failures; 1: exponential.",
    )
    lasts: Delay = 600.0
    slowdown: float = Field(default=1.1, ge=1, le=1_000)
    level: Literal["rack", "spine"] = "rack"
    strikes: Literal["any", "training"] = Field(
        default="any",
        description="any: a node of the cluster, idle or not; training: a node that trains, and "
        "while none does, the failure waits.",
    )

    @model_validator(mode="after")
    def _how_often(self) -> Self:
        given = [self.expected is not None, self.per_1000_node_days is not None, bool(self.at)]
        if sum(given) != 1:
            raise ValueError("give exactly one of expected, per_1000_node_days and at")
        return self


class TimedEvent(Model):
    """An event of the core at a given time. Its other fields are those of its kind."""

    model_config = ConfigDict(extra="allow")

    at: Moment
    kind: str

    def of_the_core(self, identity: str, moment: dt.datetime) -> dict[str, Any]:
        """The fields of the core's event, raised at `moment`."""
        fields = {"actor": "operator:scenario", **(self.model_extra or {})}
        return {**fields, "kind": self.kind, "id": identity, "at": moment}


class Operator(Model):
    """The person on call."""

    releases_after: Seconds | None = Field(
        default=None, description="Time from a trip of the breaker until its freeze is lifted."
    )


def _in_utc(begin: dt.datetime) -> dt.datetime:
    """The time in UTC, which is also assumed without a zone.

    Raises:
        ValueError: The year is too close to the limits of the calendar.
    """
    if not 1970 <= begin.year <= _LAST_YEAR:
        raise ValueError(f"the year must be from 1970 to {_LAST_YEAR}, not {begin.year}")
    return begin.astimezone(dt.UTC) if begin.tzinfo else begin.replace(tzinfo=dt.UTC)


class Scenario(Model):
    """The input of `babysit simulate`."""

    name: str = Field(min_length=1)
    description: str = ""
    days: float = Field(gt=0, le=3_660, description="Duration.")
    seed: int = 1
    begin: Annotated[dt.datetime, AfterValidator(_in_utc)] = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    cluster: Cluster
    runs: tuple[SimulatedRun, ...] = ()
    populations: tuple[Population, ...] = ()
    failures: tuple[FailureModel, ...] = ()
    failure_rate: float = Field(default=1.0, ge=0, description="Multiplies every rate.")
    recovery: Recovery = Recovery()
    operator: Operator = Operator()
    events: tuple[TimedEvent, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration of the scenario in seconds."""
        return self.days * DAY

    @model_validator(mode="before")
    @classmethod
    def _some_runs(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and not (raw.get("runs") or raw.get("populations")):
            raise ValueError("give at least one of runs and populations")
        return raw

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        for what, names in (
            ("run", [run.spec.name for run in self.runs]),
            ("failure", [failure.name for failure in self.failures]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {what}s have the name {twice[0]}")
        return self
