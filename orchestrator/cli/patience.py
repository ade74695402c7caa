"""Requests of commands that follow: they ride out restarts and broken connections."""

from __future__ import annotations

from typing import Any, Protocol

from jobs.clock import Clock
from orchestrator.cli.errors import UnreachableError
from orchestrator.cli.output import say
from orchestrator.core.text import words

PATIENCE_SECONDS = 300.0
"""Seconds without an answer after which a command that follows ends with an error (6)."""
FIRST_SECONDS = 15.0
"""Seconds for a server that has not answered this command yet: its address may be wrong."""
_AGAIN_SECONDS = 0.5


class _Here(Protocol):
    clock: Clock

    @property
    def api(self) -> Any:
        """The control plane."""

    def reconnect(self) -> None:
        """Drop the connection."""

    def wait(self, seconds: float) -> None:
        """Sleep."""


class PatientApi:
    """Reads from the control plane, however often it has to ask."""

    def __init__(self, here: _Here) -> None:
        self._here = here
        self._reached = False

    def get(self, where: str, **params: Any) -> Any:
        """GET, as :meth:`orchestrator.cli.client.Api.get` does.

        Raises:
            UnreachableError: There was no answer for :data:`PATIENCE_SECONDS`.
        """
        clock, since = self._here.clock, None
        while True:
            try:
                found = self._here.api.get(where, **params)
            except UnreachableError as error:
                now = clock.monotonic()
                if since is None:
                    since = now
                    say("The control plane does not answer; runs go on. Trying again ...")
                if now - since > (PATIENCE_SECONDS if self._reached else FIRST_SECONDS):
                    raise UnreachableError(f"{error.message} (for {words(now - since)})") from error
                self._here.reconnect()
                self._here.wait(_AGAIN_SECONDS)
            else:
                if since is not None:
                    say("The control plane answers again.")
                self._reached = True
                return found
