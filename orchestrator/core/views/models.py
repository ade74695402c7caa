"""Models of the API: the views that people and programs get. Pure.

These models are the API's schema, and `-o json` of the command line prints them as they are. Times
are UTC; what is not known (yet) is null.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import Field, JsonValue

from jobs.spec import RunSpec
from orchestrator.core.model.states import (
    RunState,
)
from orchestrator.core.policy.lemons import FACTOR, WINDOW_DAYS
from orchestrator.core.views.hardware import HardwareView, View
from orchestrator.core.views.phases import PHASES


class RunView(View):
    """A run, in a line."""

    id: str
    name: str
    state: RunState
    reason: str
    pending: str | None = Field(description="Why it waits, as a word of the scheduler.")
    owner: str
    project: str
    queue: str
    priority: str
    nodes: int = Field(description="Nodes asked for (the fewest, if elastic).")
    grace_seconds: float = Field(description="Time to save before its ranks are stopped.")
    attempt: int
    step: int = Field(description="The newest step reported; 0: none yet.")
    loss: float | None
    restarts_count: int
    reports: bool = Field(
        default=True,
        description="False: no step is known, since the script reports none and its output shows "
        "none; `step` is then 0, and `ettr` null.",
    )
    ettr: float | None = Field(
        description="Productive / allocated seconds, 0 to 1; null: not known."
    )
    submitted_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


class SubmittedView(RunView):
    """A run that has just been submitted."""

    warnings: list[str] = Field(description="What the spec asks for and this version does not do.")


class RestartView(View):
    """Why and how one attempt followed another."""

    attempt: int
    cause: str
    failure_class: str = Field(alias="class")
    reason: str
    remedy: str
    node: str | None
    rank: int | None
    incident: str | None
    detected_at: dt.datetime
    recovered_at: dt.datetime | None
    resumed_step: int | None
    lost_steps: int | None
    seconds: dict[str, float | None] = Field(description="By phase: " + ", ".join(PHASES))


class IncidentView(View):
    """Findings with one cause."""

    id: str
    run: str = Field(description="Empty: it is about the node, or the nodes, of `subject`.")
    attempt: int
    kind: str
    severity: str
    state: str
    subject: str
    onset_step: int | None
    remedy: str
    reason: str
    opened_at: dt.datetime
    resolved_at: dt.datetime | None
    acknowledged_by: str | None
    silenced_until: dt.datetime | None = Field(default=None, description="No pings before then.")
    response: str = Field(default="acted", description="acted, asked, held or observed.")
    remedy_at: dt.datetime | None = Field(
        default=None, description="When an asked remedy starts by itself; null: unknown, or never."
    )
    verdict: str | None
    alerts: str = Field(
        default="",
        description="Why people do not hear of it, and what to do; of a single incident only.",
    )
    evidence: dict[str, JsonValue]


class CheckpointView(View):
    """A saved state at a step."""

    id: str
    run: str
    attempt: int
    step: int
    tier: str
    trust: str
    doubted: bool = Field(
        description="Passed over since attempts died right after loading it; may be acquitted."
    )
    superseded: bool = Field(
        description="From after an anomaly's onset, or left behind by a rollback."
    )
    reason: str
    path: str
    world_size: int
    shards: int = Field(description="Shards recorded so far, of `world_size`.")
    unchecked: int = Field(description="Agents that have yet to read their shards back.")
    medium: str = Field(
        description="What was read back: `cache dropped` is the medium; `memory`; `page cache`."
    )
    deleting: bool = Field(description="Its deletion is decided, and not confirmed yet.")
    bytes: int
    pinned: bool
    created_at: dt.datetime
    age_seconds: float


class ShardView(View):
    """One rank's part of a checkpoint."""

    rank: int
    files: int
    bytes: int
    path: str
    copy_seconds: float
    write_seconds: float


class CheckpointDetail(CheckpointView):
    """A checkpoint with its shards."""

    batch: int
    shard_list: list[ShardView]


class SuspectView(View):
    """A silence that is being looked into."""

    since: dt.datetime = Field(description="Last sign of progress.")
    kind: str = Field(description="`silent` until the ranks were looked at, then `slow`.")
    evidence: str = Field(description="What is known, in a sentence.")
    limit_seconds: float | None = Field(description="Silence at which the run is restarted.")


class RunDetail(RunView):
    """A run, with everything a person on call asks for first."""

    restarts: list[RestartView]
    incidents: list[IncidentView]
    metrics: dict[str, float] = Field(
        default={}, description="Newest values that the script reports by name."
    )
    checkpoint: CheckpointView | None = Field(
        description="The newest sound one of its past; see `doubted`."
    )
    suspect: SuspectView | None = Field(description="Null while there is progress.")
    seconds: dict[str, float] = Field(description="Wall seconds by bucket of the time ledger.")
    node_names: list[str] = Field(description="Where the newest attempt runs or ran.")
    skip_batches: list[tuple[int, int]] = Field(description="Quarantined, inclusive.")
    avoid: list[str] = Field(description="Nodes it would rather not use.")
    alerts: str = Field(
        default="",
        description="Why notices about the run do not arrive, and what to do; empty: they do.",
    )
    blind: list[str] = Field(
        default=[], description="Hardware sources of its nodes that see nothing, and what to do."
    )
    bundle: str | None = Field(
        default=None, description="Id (sha256) of its code; null: nothing was uploaded."
    )
    spec: RunSpec


class AttemptView(View):
    """One incarnation of the gang."""

    run: str
    number: int
    state: str
    nodes: list[str]
    ranks: list[list[int]] = Field(default=[], description="Ranks on each of `nodes`.")
    world_size: int
    start_step: int
    step: int
    restored: str | None
    started_at: dt.datetime
    first_step_at: dt.datetime | None
    ended_at: dt.datetime | None
    restart: RestartView | None
    failures: list[str]


class FaultView(View):
    """A failure held against a node."""

    at: dt.datetime
    run: str
    failure_class: str = Field(alias="class")


class WindowView(View):
    """Planned maintenance of a node."""

    begins: dt.datetime
    ends: dt.datetime
    reason: str
    by: str


class NodeView(View):
    """A host."""

    id: str
    state: str
    reason: str
    by: str
    gpus: int
    cpus: float
    memory_bytes: int
    used_by_others: str = Field(
        default="",
        description="What other jobs of the cluster use, such as `3 GPUs, 1.5 CPUs`: the amounts "
        "above are without it.",
    )
    labels: dict[str, str]
    runs: list[str] = Field(description="Names of the runs with an agent there.")
    refused: list[str] = Field(description="Agents that the server refuses, with the reason.")
    faults: list[FaultView]
    lemon_score: float | None = Field(
        description=f"Probability that it fails more than {FACTOR:g} times as often as the other "
        f"nodes; null: no failure in {WINDOW_DAYS:g} days."
    )
    maintenance: list[WindowView]
    hardware: HardwareView | None = Field(
        default=None, description="null on a server that does not lead."
    )


class NodeCheck(View):
    """One thing looked at, of one node."""

    name: str
    ok: bool
    detail: str


class QueueView(View):
    """A queue of runs."""

    name: str
    gpus: int | None = Field(description="Nominal quota; null: no limit.")
    cohort: str | None
    borrowing_limit: int | None
    lending_limit: int | None
    weights: dict[str, float]
    used_gpus: int
    queued: int
    active: int


class EvictionView(View):
    """A run that would be asked to save and leave."""

    run: str
    name: str
    nodes: list[str]
    why: str = Field(description="priority, reclaim or order.")
    lost_gpu_seconds: float


class DryRunView(View):
    """The future of a run if it were submitted now."""

    name: str
    starts: bool
    nodes: list[str]
    more_nodes: list[str] = Field(description="Standbys, and growth of an elastic run.")
    domains: dict[str, list[str]] = Field(description="Topology level: domains of its nodes.")
    underlying: str | None
    place: int | None
    ahead: list[str]
    starts_at: dt.datetime | None
    evicts: list[EvictionView]
    sentences: list[str]
    warnings: list[str] = Field(default=[], description="The notes that `submit` would give.")


class EventView(View):
    """One line of the journal."""

    position: int
    id: str
    at: dt.datetime
    run: str | None
    attempt: int | None
    actor: str
    kind: Literal["event", "instruction"]
    name: str
    cause: str | None
    reason: str
    payload: dict[str, JsonValue]


class MetricsView(View):
    """Named metrics of a run, thinned, in columns of equal length."""

    step: list[int]
    attempt: list[int]
    metrics: dict[str, list[float | None]]


class SeriesView(View):
    """A run's samples, thinned, in columns of equal length."""

    step: list[int]
    attempt: list[int]
    loss: list[float | None]
    loss_min: list[float | None] = Field(default=[], description="Lowest of the point's samples.")
    loss_max: list[float | None]
    missing: list[int] = Field(
        default=[],
        description="Samples of the point without a finite loss: NaN, infinite, or not reported.",
    )
    grad_norm: list[float | None]
    seconds: list[float | None]
    time: list[float]


class ExplanationView(View):
    """Why a run is where it is."""

    run: str
    state: str
    reason: str
    underlying: str | None
    place: int | None = Field(description="Place in the queue, from 1.")
    ahead: list[str]
    unblock: str
    starts_at: dt.datetime | None = Field(description="An estimate, where there is one.")
    sentences: list[str]


class TokenView(View):
    """A credential, without its secret."""

    id: str
    name: str
    role: str
    created_at: dt.datetime
    last_used_at: dt.datetime | None
    revoked_at: dt.datetime | None
    expires_at: dt.datetime | None
    """null: never."""
    projects: list[str]
    """Projects whose runs the token is good for; empty: all."""
    queues: list[str]
    """Queues whose runs the token is good for; empty: all."""


class StoryView(View):
    """One sentence of the logbook."""

    at: dt.datetime
    text: str
