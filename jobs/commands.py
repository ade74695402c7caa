"""Commands of the control plane to a node agent. All are idempotent; the id is the key."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Command(BaseModel):
    """A command to one worker, resent until the worker acknowledges its id.

    Fields that are unknown here are ignored: the control plane may be newer than the agent.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    id: str
    attempt: int

    def part(self, place: int, ranks: tuple[int, ...]) -> Self:  # noqa: ARG002 (for those that differ)
        """The command for the worker at this place of a gang, with these ranks.

        Most commands are equal for all workers; others override this method.
        """
        return self


class RestoreCandidate(BaseModel):
    """A checkpoint that may be loaded (see :class:`babysit.wire.Candidate`)."""

    model_config = ConfigDict(frozen=True)

    id: str
    step: int
    tier: str
    path: str
    """Directory of the checkpoint; empty on the memory tier, where each node knows its own."""
    world_size: int
    attempt: int
    """The attempt that wrote it."""


class StartAttempt(Command):
    """Start these ranks. The agent first kills ranks of an older attempt.

    An attempt that is not newer than every attempt the agent has seen is ignored. The answers are
    RanksStarted, or RankExited for a rank that could not start.
    """

    kind: Literal["start_attempt"] = "start_attempt"
    ranks: tuple[int, ...]
    world_size: int
    node_rank: int
    nodes: int
    master_address: str
    master_port: int
    restore: tuple[RestoreCandidate, ...] = ()
    skip_batches: tuple[tuple[int, int], ...] = ()

    def part(self, place: int, ranks: tuple[int, ...]) -> Self:
        """The command with these ranks, for the node at this place."""
        return self.model_copy(update={"node_rank": place, "ranks": ranks})


class StopAttempt(Command):
    """Stop the ranks and answer AttemptStopped once no process of the attempt is alive.

    Ranks get `grace_seconds` to save and exit, then SIGKILL; 0: SIGKILL at once.
    """

    kind: Literal["stop_attempt"] = "stop_attempt"
    grace_seconds: float = 0.0
    reason: str = ""


class CaptureStacks(Command):
    """Capture the stacks of all ranks and answer StacksCaptured."""

    kind: Literal["capture_stacks"] = "capture_stacks"


class VerifyCheckpoint(Command):
    """Read the shards, compare sizes and hashes, and answer CheckpointChecked."""

    kind: Literal["verify_checkpoint"] = "verify_checkpoint"
    checkpoint: str
    path: str
    ranks: tuple[int, ...]
    """Ranks whose shards to read; the manifests hold the expected sizes and hashes."""

    def part(self, place: int, ranks: tuple[int, ...]) -> Self:  # noqa: ARG002 (only ranks matter)
        """The command for the shards of these ranks."""
        return self.model_copy(update={"ranks": ranks})


class DeleteCheckpoint(Command):
    """Delete the checkpoint's directory, and answer CheckpointDeleted whatever came of it."""

    kind: Literal["delete_checkpoint"] = "delete_checkpoint"
    checkpoint: str
    path: str


class FindCheckpoints(Command):
    """Look for whole checkpoints of the run on disk, and answer CheckpointsFound in any case.

    Those of attempts before `attempt`, and of steps up to `above`, do not count.
    """

    kind: Literal["find_checkpoints"] = "find_checkpoints"
    above: int
    """The newest step that is known; 0: none."""


class Shutdown(Command):
    """End the worker: kill its processes, delete its memory directory, and exit."""

    kind: Literal["shutdown"] = "shutdown"


AgentCommand = Annotated[
    StartAttempt
    | StopAttempt
    | CaptureStacks
    | VerifyCheckpoint
    | DeleteCheckpoint
    | FindCheckpoints
    | Shutdown,
    Field(discriminator="kind"),
]
