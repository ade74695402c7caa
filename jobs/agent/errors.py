"""Errors inside an agent."""

from __future__ import annotations


class AgentError(Exception):
    """Base of the agent's errors."""


class ConfigError(AgentError):
    """The configuration file cannot be read or is invalid."""


class ForkServerLostError(AgentError):
    """The fork server ended while it was needed."""


class LaunchError(AgentError):
    """The fork server could not fork a rank."""


class NoteError(AgentError):
    """A line of `notes.jsonl` is not a note of this version."""


class SpoolError(AgentError):
    """The spool file is damaged."""


class RefusedPathError(AgentError):
    """The agent refuses to delete a path."""


class ServerUnknownError(AgentError):
    """The address of the control plane cannot be read (yet)."""
