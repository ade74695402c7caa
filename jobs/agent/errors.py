"""Errors inside an agent."""

from __future__ import annotations

from jobs.agent.rank_end import failure_to_start
from monitors.failures import Failure, FailureClass


class AgentError(Exception):
    """Base of the agent's errors."""


class ConfigError(AgentError):
    """The configuration file cannot be read or is invalid."""


class ForkServerLostError(AgentError):
    """The fork server ended while it was needed."""


class LaunchError(AgentError):
    """The fork server could not fork a rank."""

    kind = FailureClass.UNKNOWN
    final = False
    """True if no further try can mend it."""

    def failure(self, rank: int) -> Failure:
        """The failure of a rank that was not started for this."""
        return failure_to_start(rank, self.kind, str(self), final=self.final)


class NoCodeError(LaunchError):
    """The code of the run is not on this node.

    Args:
        message: Why.
        final: No further try can mend it.
    """

    kind = FailureClass.STORAGE

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class NoteError(AgentError):
    """A line of `notes.jsonl` is not a note of this version."""


class SpoolError(AgentError):
    """The spool file is damaged."""


class RefusedPathError(AgentError):
    """The agent refuses to delete a path."""


class ServerUnknownError(AgentError):
    """The address of the control plane cannot be read (yet)."""
