"""What can go wrong inside an agent."""

from __future__ import annotations


class AgentError(Exception):
    """Base of the agent's errors."""


class ConfigError(AgentError):
    """The configuration file cannot be read or is invalid."""


class StandbyLostError(AgentError):
    """The standby interpreter ended while it was needed."""


class LaunchError(AgentError):
    """The standby could not fork a rank."""


class NoteError(AgentError):
    """A line of `notes.jsonl` is not a note of this version."""


class SpoolError(AgentError):
    """The spool file is damaged."""


class RefusedPathError(AgentError):
    """A path that the agent will not delete."""


class ServerUnknownError(AgentError):
    """No address of the control plane can be read (yet)."""
