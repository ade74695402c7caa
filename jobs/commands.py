"""What the control plane tells a node agent. Every command is idempotent: the id is the key."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Command(BaseModel):
    """Sent to one worker until the worker has acknowledged its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    id: str
    attempt: int

    def part(self, place: int, ranks: tuple[int, ...]) -> Self:  # noqa: ARG002 (for those that differ)
        """What the worker at this place of a gang, with these ranks, is told.

        The same as all others, unless the command says who does what.
        """
        return self


class RestoreCandidate(BaseModel):
    """A checkpoint that may be loaded (see :class:`babysit.wire.Candidate`)."""

    model_config = ConfigDict(frozen=True)

    id: str
    step: int
    tier: str
    path: str
    """Empty on the memory tier: each node knows its own memory directory."""
    world_size: int
    attempt: int
    """The attempt that wrote it."""


class StartAttempt(Command):
    """Start these ranks. An agent that has ranks of an older attempt kills them first."""

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
        """These ranks, on the node of this place."""
        return self.model_copy(update={"node_rank": place, "ranks": ranks})


class StopAttempt(Command):
    """Kill the ranks and answer AttemptStopped.

    They get `grace_seconds` in which to save and leave.
    """

    kind: Literal["stop_attempt"] = "stop_attempt"
    grace_seconds: float = 0.0
    reason: str = ""


class CaptureStacks(Command):
    """Answer StacksCaptured."""

    kind: Literal["capture_stacks"] = "capture_stacks"


class VerifyCheckpoint(Command):
    """Read the shards back, compare sizes and hashes, and answer CheckpointChecked."""

    kind: Literal["verify_checkpoint"] = "verify_checkpoint"
    checkpoint: str
    path: str
    ranks: tuple[int, ...]
    """Whose shards; their manifests say what was written."""

    def part(self, place: int, ranks: tuple[int, ...]) -> Self:  # noqa: ARG002 (only ranks matter)
        """The shards of these ranks."""
        return self.model_copy(update={"ranks": ranks})


class DeleteCheckpoint(Command):
    """Remove the checkpoint's directory and answer CheckpointDeleted."""

    kind: Literal["delete_checkpoint"] = "delete_checkpoint"
    checkpoint: str
    path: str


class Shutdown(Command):
    """The run is over: kill what is left, remove this worker's memory directory, and exit."""

    kind: Literal["shutdown"] = "shutdown"


AgentCommand = Annotated[
    StartAttempt | StopAttempt | CaptureStacks | VerifyCheckpoint | DeleteCheckpoint | Shutdown,
    Field(discriminator="kind"),
]
