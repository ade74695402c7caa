"""Events that node agents report.

These are the events of the core: the classes are the same, so nothing is translated. Every event
has an id (a ULID, made at its origin), the time on the reporter's clock, and the actor. The control
plane stores each report once, by its sequence. Durations are seconds, sizes are bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Tier
from jobs.checks.results import CheckResult
from jobs.engine_events import EngineEvent
from jobs.event_base import Event as Event  # noqa: PLC0414  # exported
from jobs.event_base import WorkerEvent as WorkerEvent  # noqa: PLC0414  # exported
from jobs.shards import ShardReport
from monitors.failures import Failure
from monitors.flight_recorder import GroupRecord


class WorkerJoined(WorkerEvent):
    """The agent is running, its fork server is warm, and it can start ranks."""

    kind: Literal["worker_joined"] = "worker_joined"
    node: str
    address: str
    """Host at which other nodes reach this node."""
    port: int
    """A free port for the rendezvous if rank 0 runs here; 0: none found."""
    pid: int = 0
    resumed: bool = False
    """True if ranks of `attempt` are alive under this agent."""
    checks: tuple[CheckResult, ...] = ()
    """Measured before it joined; empty: it had to measure nothing."""


class RanksStarted(WorkerEvent):
    """All ranks of the worker have been launched: their processes exist."""

    kind: Literal["ranks_started"] = "ranks_started"
    ranks: tuple[int, ...]


class RankReady(WorkerEvent):
    """A rank called `babysit.init()`: the user's script has finished its imports."""

    kind: Literal["rank_ready"] = "rank_ready"
    rank: int


class RejectedCheckpoint(BaseModel):
    """A candidate that could not be loaded."""

    model_config = ConfigDict(frozen=True)

    id: str
    reason: str
    unreadable: bool = False
    """True: missing or unreadable, which may be temporary; False: damaged."""


class RankRestored(WorkerEvent):
    """A rank loaded a checkpoint.

    Step 0 without an id: it starts from the beginning, or could load none of the candidates.
    """

    kind: Literal["rank_restored"] = "rank_restored"
    rank: int
    step: int
    checkpoint: str = ""
    seconds: float = 0.0
    rejected: tuple[RejectedCheckpoint, ...] = ()


class RankExited(WorkerEvent):
    """A rank's process has ended. `failure` is None if it ended well."""

    kind: Literal["rank_exited"] = "rank_exited"
    rank: int
    code: int
    """Exit code; negative: that signal killed it."""
    failure: Failure | None = None
    remark: str = ""
    """Why another exit code than 0 is a good end; empty for code 0, and for a failure."""
    last_step: int = 0


class ShardWritten(WorkerEvent):
    """A shard of a directory checkpoint is on disk."""

    kind: Literal["shard_written"] = "shard_written"
    shard: ShardReport


class SaveFailed(WorkerEvent):
    """A rank could not save; its training continues."""

    kind: Literal["save_failed"] = "save_failed"
    rank: int
    step: int
    tier: Tier
    error: str
    full: bool = False
    """True if there was no room, or no quota left."""


class SaveResumed(WorkerEvent):
    """A rank saves to a tier again, after a save to that tier had failed."""

    kind: Literal["save_resumed"] = "save_resumed"
    rank: int
    step: int
    tier: Tier


class Place(StrEnum):
    """A directory that an agent needs."""

    LOGS = "logs"  # the logs of the ranks
    SPOOL = "spool"  # reports that the control plane has not taken yet
    RANKS = "ranks"  # on tmpfs: the notes and rings of the ranks
    MEMORY = "memory"  # on tmpfs: checkpoints


class StorageTrouble(WorkerEvent):
    """A directory that the agent needs cannot be written, or has vanished; or that is over."""

    kind: Literal["storage_trouble"] = "storage_trouble"
    place: Place
    path: str
    error: str = ""
    full: bool = False
    """True if there is no room, or no quota left."""
    over: bool = False
    """True if it can be written again."""


class ChangeAnnounced(WorkerEvent):
    """The script announced a change of the loss (`run.expect`)."""

    kind: Literal["change_announced"] = "change_announced"
    rank: int
    change: str
    """The announced change, in the words of the script."""
    step: int
    """The last step before the announcement."""
    until_step: int
    """Last step of the change."""


class AttemptStopped(WorkerEvent):
    """No process of the attempt is alive on this worker.

    The event lists the memory shards that survived.
    """

    kind: Literal["attempt_stopped"] = "attempt_stopped"
    memory_shards: tuple[ShardReport, ...] = ()
    port: int = 0
    """A new free port for the rendezvous; 0: none found."""
    last_step: int = 0


class RankStack(BaseModel):
    """Two looks at one rank, about a second apart."""

    model_config = ConfigDict(frozen=True)

    rank: int
    process_state: str
    """Letter from /proc: R running, S sleeping, D uninterruptible, T stopped, Z zombie."""
    frames: tuple[str, ...] = ()
    """Of the main thread, innermost first: `function (file:line)`."""
    frames_later: tuple[str, ...] = ()
    """Frames at the second look; empty when nothing had changed."""
    line: str = ""
    """Source of the innermost frame: a wait inside a library in C has no frame of its own."""
    wait_channel: str = ""
    """Kernel function the main thread waits in; empty where the kernel does not say."""
    deadline: bool = False
    """Where the main thread waits for a lock: the wait may have a time-out, and end by itself."""
    traced: bool = False
    """A debugger is attached."""
    on_gpu: bool = False
    """The process has an accelerator open."""
    cpu_seconds: float = 0.0
    """CPU time of the main thread between the looks."""
    helpers: tuple[str, ...] = ()
    """Other threads and children that moved between the looks, or may go on by themselves."""
    dead_children: tuple[str, ...] = ()
    """Children that are stopped or dead."""
    waits_for: str = ""
    """A file that the main thread waits for, and what ends the wait; empty: not known."""
    raised: str = ""
    """Traceback of the exception that ended its main thread; other threads keep the process."""
    groups: tuple[GroupRecord, ...] = ()
    """Process groups of the rank by torch's flight recorder; empty: no recorder, or no answer."""
    error: str = ""
    """Why there are no frames; empty when there are."""


class StacksCaptured(WorkerEvent):
    """The answer to CaptureStacks."""

    kind: Literal["stacks_captured"] = "stacks_captured"
    stacks: tuple[RankStack, ...]


class CheckpointChecked(WorkerEvent):
    """The answer to VerifyCheckpoint: sizes and hashes of the shards were compared."""

    kind: Literal["checkpoint_checked"] = "checkpoint_checked"
    checkpoint: str
    ok: bool
    error: str = ""
    unreadable: bool = False
    """True if it failed because a file is missing or unreadable, which may be temporary."""
    seconds: float = 0.0
    medium: str = ""
    """The source of the bytes: `cache dropped` (the medium), `memory` (tmpfs) or `page cache`."""


class CheckpointDeleted(WorkerEvent):
    """The answer to DeleteCheckpoint, or news of a script: without an error the bytes are gone."""

    kind: Literal["checkpoint_deleted"] = "checkpoint_deleted"
    checkpoint: str
    error: str = ""
    refused: bool = False
    """True if something else lies there now, so that it must not be deleted."""
    by_script: bool = False
    """True if nobody asked: the script deleted one of its own checkpoints."""


class CheckpointsFound(WorkerEvent):
    """The answer to FindCheckpoints. `attempt` is the one that the command named."""

    kind: Literal["checkpoints_found"] = "checkpoints_found"
    shards: tuple[ShardReport, ...] = ()
    """All shards of each whole checkpoint, the newest first."""
    error: str = ""
    """Why the directory could not be read; empty: it was."""


AgentEvent = Annotated[
    WorkerJoined
    | RanksStarted
    | RankReady
    | RankRestored
    | RankExited
    | ShardWritten
    | SaveFailed
    | SaveResumed
    | StorageTrouble
    | ChangeAnnounced
    | EngineEvent
    | AttemptStopped
    | StacksCaptured
    | CheckpointChecked
    | CheckpointDeleted
    | CheckpointsFound,
    Field(discriminator="kind"),
]


class RankSamples(BaseModel):
    """Samples of one rank, in columns of equal length (units: :class:`babysit.ring.Record`)."""

    model_config = ConfigDict(frozen=True)

    rank: int
    lost: int = 0
    """Records overwritten before the agent could read them."""
    step: list[int] = Field(default_factory=list)
    batch: list[int] = Field(default_factory=list)
    time: list[float] = Field(default_factory=list)
    loss: list[float | None] = Field(default_factory=list)
    """None: the rank has no loss for the step."""
    grad_norm: list[float] = Field(default_factory=list)
    tokens: list[float] = Field(default_factory=list)
    seconds: list[float] = Field(default_factory=list)
    blocked_seconds: list[float] = Field(default_factory=list)
    learning_rate: list[float] = Field(default_factory=list)
    expected_until: list[int] = Field(default_factory=list)
    """Last step of a change that the script has announced; 0: none. Empty: none in any."""
    metrics: dict[str, list[float]] = Field(default_factory=dict)
    """Other columns by name; NaN: not in that report."""


class RankFingerprint(BaseModel):
    """Digests of one rank's state after a step, which true replicas share bit for bit."""

    model_config = ConfigDict(frozen=True)

    rank: int
    step: int
    batch: int = 0
    time: float
    """Unix seconds."""
    world_size: int
    parts: dict[str, str] = Field(max_length=64)
    """Digest by `part:structure`, with `:shard` where ranks hold shards."""


class RankBeat(BaseModel):
    """The current progress of a rank, from the header of its ring."""

    model_config = ConfigDict(frozen=True)

    rank: int
    step: int
    phase: str
    beat: float
    alive: bool
    moved: bool = True
    """True if the rank has shown progress in this attempt.

    A rank that never did (its script does not report) looks like one that is stuck: its silence
    alone proves nothing.
    """
    first_step: int = 0
    """The first step that the rank ended in this attempt; 0: not known."""
    printed: bool = False
    """True if the step was read from the output: the script itself reports nothing."""
    parts: tuple[float, ...] = ()
    """Seconds of the rank's process so far by :class:`babysit.wire.Part`; empty: not measured."""


class Report(BaseModel):
    """One numbered message of an agent: samples first, then events in order.

    `sequence` grows by one per message of a worker. The control plane stores each message once and
    acknowledges it.
    """

    model_config = ConfigDict(frozen=True)

    sequence: int
    attempt: int
    samples: tuple[RankSamples, ...] = ()
    fingerprints: tuple[RankFingerprint, ...] = ()
    events: tuple[AgentEvent, ...] = ()


class Heartbeat(BaseModel):
    """Progress of the ranks, sent every second while connected; not numbered, spooled or stored."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    time: float
    """Unix seconds on the agent's clock."""
    beats: tuple[RankBeat, ...] = ()


class Hello(BaseModel):
    """The first frame of a connection (the token is in the Authorization header)."""

    model_config = ConfigDict(frozen=True)

    protocol: int = 1
    run: str
    worker: str
    node: str
    attempt: int
    next_sequence: int
    """Sequence of the oldest message in the spool, or of the next one if it is empty."""
    address: str = ""
    """Host at which other nodes reach this node; empty: an older agent does not say."""
    logs: int = 0
    """Version of :mod:`jobs.log_messages` that the agent speaks; 0: an older agent, none."""
