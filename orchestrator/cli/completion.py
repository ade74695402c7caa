"""Names of runs for the shell: quick, silent, and without starting a server.

Reads the environment itself and speaks HTTP by the standard library: the settings and the HTTP
client of the other commands take longer to import than a person waits for a completion.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs import unix_socket
from orchestrator.network_address import is_plain

_SECONDS = 2.0
RUN_COMES_NEXT = frozenset(
    tuple(words.split(" "))
    for words in (
        *("cancel", "events", "explain", "hold", "logbook", "logs", "release", "report"),
        *("restart", "rollback", "show", "wait", "watch", "incidents ls"),
        *(f"checkpoints {verb}" for verb in ("ls", "show", "verify", "pin", "unpin", "rm")),
    )
)
"""Words after `babysit` that the name of a run follows."""


def typed_an_option() -> bool:
    """True if the line to be completed holds an option: only its command knows what follows it."""
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return any(word.startswith("-") for word in typed.split())


def complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Names of runs that begin as typed, each with its state; nothing when no server answers."""
    try:
        rows = _runs()
    except (OSError, http.client.HTTPException, ValueError):
        return []
    names = {str(row["name"]): f"{row['state']}, {row['id']}" for row in reversed(rows)}
    return [(name, help_) for name, help_ in names.items() if name.startswith(incomplete)]


def _runs() -> list[dict[str, Any]]:
    """The newest runs.

    Raises:
        OSError, http.client.HTTPException, ValueError: There is no answer, or not this one.
    """
    token = os.environ.get("BABYSIT_TOKEN", "")
    connection = _connection(os.environ.get("BABYSIT_SERVER", "").rstrip("/"), token)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", "/api/v1/runs", headers=headers)
        answer = connection.getresponse()
        rows = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise ValueError(f"answer {answer.status}")
    return list(rows)


def _connection(server: str, token: str) -> http.client.HTTPConnection:
    if not server:
        return _Local(Path(os.environ.get("BABYSIT_HOME") or "~/.babysit").expanduser().absolute())
    if token and is_plain(server) and not os.environ.get("BABYSIT_ALLOW_HTTP"):
        raise ValueError("the token would cross the network unencrypted")
    parts = urlsplit(server)
    if parts.scheme == "https":
        trust = ssl.create_default_context(cafile=os.environ.get("BABYSIT_CA") or None)
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=_SECONDS, context=trust
        )
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)


class _Local(http.client.HTTPConnection):
    """A connection to the server of a home, by its socket."""

    def __init__(self, home: Path) -> None:
        super().__init__("babysit", timeout=_SECONDS)
        self._path = home / "server.sock"

    def connect(self) -> None:
        """See the base class."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        with unix_socket.address(self._path) as address:
            self.sock.connect(address)
        if not unix_socket.is_ours(self.sock):
            raise ConnectionError("another user has the socket")
