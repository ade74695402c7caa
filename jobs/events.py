"""Events that node agents report.

These are the events of the core: the classes are the same, so nothing is translated. Every event
has an id (a ULID, made at its origin), the time on the reporter's clock, and the actor. The control
plane stores each report once, by its sequence. Durations are seconds, sizes are bytes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Tier
from monitors.failures import Failure


class Event(BaseModel):
    """A fact that the core handles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    id: str
    """ULID."""
    at: dt.datetime
    """Time of the fact on the reporter's clock (UTC)."""
    actor: str = "system"
    """`worker:<id>`, `operator:<name>`, `monitor:<kind>`, `controller` …"""
    cause: str | None = None
    """Id of the event or instruction that this event answers; None: none."""


class WorkerEvent(Event):
    """An event of an agent. `attempt` is the fencing token: older attempts are refused."""

    run: str
    worker: str
    attempt: int
    """The attempt that the agent works for; 0 before the first."""


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
    """A rank's process has ended. `failure` is None for exit code 0."""

    kind: Literal["rank_exited"] = "rank_exited"
    rank: int
    code: int
    """Exit code; negative: that signal killed it."""
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
    """The attempt that wrote it. A later attempt may write the same step to the same path."""
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
    """The run that wrote it; empty: written by a version that did not record it."""


class Shards(BaseModel):
    """Shards of one checkpoint in columns of equal length: the ShardReports of many ranks."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    step: int
    world_size: int
    tier: Tier
    path: str
    batch: int
    ranks: tuple[int, ...]
    workers: tuple[str, ...]
    """The worker that wrote, or stores, each shard."""
    sizes: tuple[int, ...]
    """Bytes of each shard."""
    files: tuple[tuple[ShardFile, ...], ...]
    copy_seconds: tuple[float, ...]
    write_seconds: tuple[float, ...]

    @classmethod
    def of(cls, worker: str, *reports: ShardReport) -> Shards:
        """The reports of one worker about one checkpoint, as columns.

        Raises:
            IndexError: There are no reports.
        """
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
        """Yield the shards one by one, for the table of shards."""
        shared = {name: getattr(self, name) for name in _OF_THE_CHECKPOINT}
        columns = zip(self.ranks, self.files, self.copy_seconds, self.write_seconds, strict=True)
        for rank, files, copied, wrote in columns:
            yield ShardReport(
                **shared, rank=rank, files=files, copy_seconds=copied, write_seconds=wrote
            )

    def kept(self, places: Sequence[int]) -> Shards:
        """The shards at these indices of the columns."""
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
    """A rank could not save; its training continues."""

    kind: Literal["save_failed"] = "save_failed"
    rank: int
    step: int
    tier: Tier
    error: str


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


class CheckpointDeleted(WorkerEvent):
    """The answer to DeleteCheckpoint."""

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
    | ChangeAnnounced
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
    expected_until: list[int] = Field(default_factory=list)
    """Last step of a change that the script has announced; 0: none. Empty: none in any."""
    metrics: dict[str, list[float]] = Field(default_factory=dict)
    """Other columns by name; NaN: not in that report."""


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


class Report(BaseModel):
    """One numbered message of an agent: samples first, then events in order.

    `sequence` grows by one per message of a worker. The control plane stores each message once and
    acknowledges it.
    """

    model_config = ConfigDict(frozen=True)

    sequence: int
    attempt: int
    samples: tuple[RankSamples, ...] = ()
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
