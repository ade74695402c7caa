"""`server.json`: how the embedded server of a home is reached. The server writes it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError


class ServerRecord(BaseModel):
    """The record that a running embedded server keeps of itself."""

    pid: int
    url: str
    """`http://127.0.0.1:<port>`."""
    agent_url: str = ""
    """`ws://127.0.0.1:<port>/agent`."""
    token: str


def read_record(file: Path) -> ServerRecord | None:
    """The record of the last embedded server, whether it lives or not."""
    try:
        return ServerRecord.model_validate_json(file.read_text())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def write_record(file: Path, record: ServerRecord) -> None:
    """Replace the record: whole or not at all, readable by the owner only (it has the token)."""
    temporary = file.with_suffix(f".{record.pid}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(record.model_dump_json())
    temporary.replace(file)


def is_alive(record: ServerRecord) -> bool:
    """True if the process of the record is still a babysit server (and not a reused number)."""
    try:
        command = Path(f"/proc/{record.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"orchestrator.server" in command
