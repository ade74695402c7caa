"""What a node agent reports.

Agents' messages *are* events of the core: same classes, no translation.

Every event bears an id (ULID, made where the event arose), the time on the reporter's clock, and
the actor. The gateway takes each report once, by its sequence.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Tier
from monitors.failures import Failure


class Event(BaseModel):
    """Something that happened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    id: str
    """ULID."""
    at: dt.datetime
    """When it happened, on the reporter's clock (UTC)."""
    actor: str = "system"
    """`worker:<id>`, `operator:<name>`, `monitor:<kind>`, `controller` …"""
    cause: str | None = None
    """Id of the event or instruction this one answers."""


class WorkerEvent(Event):
    """Reported by an agent. `attempt` is the fencing token: an older one is refused."""

    run: str
    worker: str
    attempt: int
    """The attempt the agent is working for; 0 before the first."""


class WorkerJoined(WorkerEvent):
    """The agent is up, its standby interpreter warm, and it can start ranks."""

    kind: Literal["worker_joined"] = "worker_joined"
    node: str
    address: str
    """Host other nodes reach this one at."""
    port: int
    """A free port for the rendezvous, should rank 0 land here."""
    pid: int = 0
    resumed: bool = False
    """Whether ranks of `attempt` are alive under this agent."""


class RanksStarted(WorkerEvent):
    """All ranks of the worker have been launched (processes exist)."""

    kind: Literal["ranks_started"] = "ranks_started"
    ranks: tuple[int, ...]


class RankReady(WorkerEvent):
    """A rank called `babysit.init()`: the user's script is past its imports."""

    kind: Literal["rank_ready"] = "rank_ready"
    rank: int


class RejectedCheckpoint(BaseModel):
    """A candidate that could not be loaded."""

    model_config = ConfigDict(frozen=True)

    id: str
    reason: str
    unreadable: bool = False
    """It is missing or cannot be read, which may pass; otherwise it is damaged."""


class RankRestored(WorkerEvent):
    """A rank loaded a checkpoint.

    Step 0 and no id: it started from the beginning, or could load none of those offered.
    """

    kind: Literal["rank_restored"] = "rank_restored"
    rank: int
    step: int
    checkpoint: str = ""
    seconds: float = 0.0
    rejected: tuple[RejectedCheckpoint, ...] = ()


class RankExited(WorkerEvent):
    """A rank's process ended. `failure` is None for exit code 0."""

    kind: Literal["rank_exited"] = "rank_exited"
    rank: int
    code: int
    """Exit code; negative: killed by that signal."""
    failure: Failure | None = None
    last_step: int = 0


class ShardFile(BaseModel):
    """One file of a shard."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    blake2b: str
    """Hex digest, 16 bytes."""


class ShardReport(BaseModel):
    """One rank's part of a checkpoint, written and hashed."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    """The attempt that wrote it: a later attempt may write the same step again, to the same path.

    """
    step: int
    rank: int
    world_size: int
    tier: Tier
    path: str
    """The checkpoint's directory (not the rank's)."""
    batch: int
    """Batches drawn so far; the next step draws batch + 1."""
    files: tuple[ShardFile, ...]
    copy_seconds: float = 0.0
    write_seconds: float = 0.0
    run: str = ""
    """Whose it is; empty: written before manifests said so."""


class Shards(BaseModel):
    """Parts of one checkpoint, in columns of equal length: what ShardReports say of many ranks."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    step: int
    world_size: int
    tier: Tier
    path: str
    batch: int
    ranks: tuple[int, ...]
    workers: tuple[str, ...]
    """Where each part lies, or who wrote it."""
    sizes: tuple[int, ...]
    """Bytes of each part."""
    files: tuple[tuple[ShardFile, ...], ...]
    copy_seconds: tuple[float, ...]
    write_seconds: tuple[float, ...]

    @classmethod
    def of(cls, worker: str, *reports: ShardReport) -> Shards:
        """What one worker reports of one checkpoint."""
        first = reports[0]
        return cls(
            **{name: getattr(first, name) for name in _OF_THE_CHECKPOINT},
            ranks=tuple(report.rank for report in reports),
            workers=(worker,) * len(reports),
            sizes=tuple(sum(file.bytes for file in report.files) for report in reports),
            files=tuple(report.files for report in reports),
            copy_seconds=tuple(report.copy_seconds for report in reports),
            write_seconds=tuple(report.write_seconds for report in reports),
        )

    def reports(self) -> Iterator[ShardReport]:
        """One by one, for the table of shards."""
        shared = {name: getattr(self, name) for name in _OF_THE_CHECKPOINT}
        columns = zip(self.ranks, self.files, self.copy_seconds, self.write_seconds, strict=True)
        for rank, files, copied, wrote in columns:
            yield ShardReport(
                **shared, rank=rank, files=files, copy_seconds=copied, write_seconds=wrote
            )

    def kept(self, places: Sequence[int]) -> Shards:
        """Only the parts at these places of the columns."""
        columns = {
            name: tuple(getattr(self, name)[place] for place in places) for name in _OF_EACH_PART
        }
        return self.model_copy(update=columns)


_OF_THE_CHECKPOINT = ("attempt", "step", "world_size", "tier", "path", "batch")
_OF_EACH_PART = ("ranks", "workers", "sizes", "files", "copy_seconds", "write_seconds")


class ShardWritten(WorkerEvent):
    """A shard of a directory checkpoint is on disk."""

    kind: Literal["shard_written"] = "shard_written"
    shard: ShardReport


class SaveFailed(WorkerEvent):
    """A rank could not save."""

    kind: Literal["save_failed"] = "save_failed"
    rank: int
    step: int
    tier: Tier
    error: str


class AttemptStopped(WorkerEvent):
    """No process of the attempt is alive on this worker.

    Carries the memory shards that survived it.
    """

    kind: Literal["attempt_stopped"] = "attempt_stopped"
    memory_shards: tuple[ShardReport, ...] = ()
    port: int = 0
    """A fresh rendezvous port."""
    last_step: int = 0


class RankStack(BaseModel):
    """What one rank was doing."""

    model_config = ConfigDict(frozen=True)

    rank: int
    process_state: str
    """Letter from /proc: R running, S sleeping, D uninterruptible, T stopped, Z zombie."""
    frames: tuple[str, ...] = ()
    """Innermost first: `function (file:line)`."""
    error: str = ""


class StacksCaptured(WorkerEvent):
    """Answer to CaptureStacks."""

    kind: Literal["stacks_captured"] = "stacks_captured"
    stacks: tuple[RankStack, ...]


class CheckpointChecked(WorkerEvent):
    """Answer to VerifyCheckpoint: the shards were read back and hashed."""

    kind: Literal["checkpoint_checked"] = "checkpoint_checked"
    checkpoint: str
    ok: bool
    error: str = ""
    unreadable: bool = False
    """Not ok since it is missing or cannot be read, which may pass; otherwise it is damaged."""
    seconds: float = 0.0


class CheckpointDeleted(WorkerEvent):
    """Answer to DeleteCheckpoint."""

    kind: Literal["checkpoint_deleted"] = "checkpoint_deleted"
    checkpoint: str


AgentEvent = Annotated[
    WorkerJoined
    | RanksStarted
    | RankReady
    | RankRestored
    | RankExited
    | ShardWritten
    | SaveFailed
    | AttemptStopped
    | StacksCaptured
    | CheckpointChecked
    | CheckpointDeleted,
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


class RankBeat(BaseModel):
    """The live part of a rank's ring."""

    model_config = ConfigDict(frozen=True)

    rank: int
    step: int
    phase: str
    beat: float
    alive: bool
    moved: bool = True
    """Whether the rank has shown progress in this attempt. One that never did (its script does not
    report) cannot be told from a rank that stands still: silence alone says nothing of it."""


class Report(BaseModel):
    """One numbered message of an agent: samples first, then events in the order they arose.

    `sequence` grows by one per message of a worker; the control plane stores each once and
    acknowledges it.
    """

    model_config = ConfigDict(frozen=True)

    sequence: int
    attempt: int
    samples: tuple[RankSamples, ...] = ()
    events: tuple[AgentEvent, ...] = ()


class Heartbeat(BaseModel):
    """Sent every second while connected; not numbered, not spooled, not stored."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    time: float
    """Unix seconds on the agent's clock."""
    beats: tuple[RankBeat, ...] = ()


class Hello(BaseModel):
    """First frame of a connection (the token is in the Authorization header)."""

    model_config = ConfigDict(frozen=True)

    protocol: int = 1
    run: str
    worker: str
    node: str
    attempt: int
    next_sequence: int
    """Sequence of the oldest message still in the spool (or the next one to be made)."""
