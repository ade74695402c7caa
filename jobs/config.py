"""The configuration of an agent: one JSON file that the cluster writes.

Its mode is 0600, because it contains the token.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jobs.environment import Environment
from jobs.log_files import LogLimit
from jobs.spec import RunSpec
from monitors.exit_rules import RuleFile

ADDRESS_VARIABLE = "BABYSIT_NODE_ADDRESS"
"""Environment variable with the address of the node, for a configuration that has none."""


class AgentConfig(BaseModel):
    """Settings of one agent: `babysit-agent CONFIG.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    worker: str
    node: str
    address: str = "127.0.0.1"
    """Host at which other nodes reach this node, of either address family.

    Empty: the agent takes the environment variable `BABYSIT_NODE_ADDRESS`, for clusters that learn
    the address only when the worker starts (in Kubernetes, the Pod's IP by the downward API).
    """
    server_url: str = ""
    """`ws://host:port/agent`; empty: read it from `server_file`."""
    ca: Path | None = None
    """PEM file of the authorities that sign the server's certificate; None: the system's."""
    server_file: Path | None = None
    """JSON file with a key `agent_url`; None: use `server_url`.

    Every connection attempt reads it again, since an embedded server may move.
    """
    token: str
    bundle: str | None = None
    """Id of the bundle with the code of the run (sha256 in hex); None: `spec.workdir` is there."""
    directory: Path
    """This worker's directory on disk: `spool/`, `agent.log`, `agent.pid`."""
    log_directory: Path
    """On disk: `attempt-0001/rank-00000.log` … (stdout and stderr of each rank)."""
    memory_directory: Path
    """This worker's directory on tmpfs.

    `ranks/rank-00000/` … are the rank directories, `checkpoints/` is the memory tier.
    """
    environment_file: Path | None = None
    """JSON of the submitted :class:`jobs.environment.Environment`; None: none was submitted.

    It is read once, at the start: `/dev/stdin` leaves no file behind.
    """
    submitted: Environment = Field(default=Environment(), exclude=True, repr=False)
    """The content of that file, once the agent has read it. Never written."""
    spec: RunSpec
    """The run spec, with `workdir` and `checkpoint.directory` absolute."""
    grace_seconds: float = 30.0
    """Time that the ranks get to save when the agent itself gets SIGTERM; 0: none."""
    log_limit: LogLimit = LogLimit()
    """Disk that the log of one rank and attempt may take."""
    log_rules: tuple[RuleFile, ...] = ()
    """Rules for logs of the cluster; those of the run are in the spec."""
    checks: tuple[str, ...] = ()
    """Programs of :mod:`jobs.checks` that run before the worker joins. Where `run` is `checks`,
    the agent only checks its node, with these or, if there are none, with all."""
    peer: str = ""
    """`host:port` of the node to which a check measures the link; empty: this node listens."""
    orphan_seconds: float = 86400.0
    """The agent leaves after this time without ranks and without contact."""
