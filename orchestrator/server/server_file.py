"""`server.json`: which process serves a home, and where. The server writes it. It has no secret."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ValidationError

from jobs import processes
from jobs.processes import Identity


class ServerRecord(BaseModel):
    """The record that a running server keeps of itself."""

    process: Identity
    host: str
    """Name of the machine: homes may be shared by several."""
    url: str
    """`unix:/home/mia/.babysit/server.sock`, for processes of the home's owner."""
    port_url: str = ""
    """`http://127.0.0.1:8080`, for others; empty: the server listens on no port."""
    agent_url: str = ""
    """`ws+unix:/home/mia/.babysit/server.sock`, `wss://babysit.example.org/agent` …"""

    @property
    def pid(self) -> int:
        """The pid of the server, on its machine."""
        return self.process.pid

    @property
    def is_here(self) -> bool:
        """True if the server was started on this machine."""
        return self.host == socket.gethostname()


def this_process() -> Identity:
    """The identity of the calling process."""
    found = processes.identify(os.getpid())
    assert found is not None  # noqa: S101 (it is alive)
    return found


def read_record(file: Path) -> ServerRecord | None:
    """The record of the last server, whether it lives or not; None: there is none to be read."""
    try:
        return ServerRecord.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def write_record(file: Path, record: ServerRecord) -> None:
    """Replace the record: whole or not at all, readable by the owner only."""
    temporary = file.with_suffix(f".{record.pid}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(record.model_dump_json())
    temporary.replace(file)


def is_alive(record: ServerRecord) -> bool:
    """True if the very process of the record lives: no later one with its pid, none elsewhere."""
    return record.is_here and processes.is_alive(record.process)
