"""What an agent is started with.

One JSON file, written by the cluster, mode 0600 (it holds the token).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jobs.spec import RunSpec


class AgentConfig(BaseModel):
    """Settings of one agent: `python -P -m jobs.agent CONFIG.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    worker: str
    node: str
    address: str = "127.0.0.1"
    """Host at which other nodes reach this one."""
    server_url: str = ""
    """`ws://host:port/agent` of the server that started the agent; empty: see `server_file`."""
    server_file: Path | None = None
    """JSON file whose key `agent_url` says where the server is after a restart on another port.

    The agent tries `server_url` and this address in turn until one of them takes the connection,
    and reads the file again for each try. None: the server never moves.
    """
    token: str
    directory: Path
    """On disk, this worker's own: `spool/`, `agent.log`, `agent.pid`."""
    log_directory: Path
    """On disk: `attempt-0001/rank-00000.log` … (stdout and stderr of each rank)."""
    memory_directory: Path
    """On tmpfs, this worker's own.

    `ranks/rank-00000/` (rank directories), `checkpoints/` (memory tier).
    """
    spec: RunSpec
    """`workdir` and `checkpoint.directory` are absolute here."""
    orphan_seconds: float = 86400.0
    """With nothing running and no control plane for this long, the agent leaves."""
