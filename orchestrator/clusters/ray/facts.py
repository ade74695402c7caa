"""Facts of the Ray cluster that the driver's process tells: plain values that cross a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Tell(Protocol):
    """Takes a change for the control plane."""

    def __call__(self, kind: str, *facts: object) -> None:
        """Tell it."""


class Store(Protocol):
    """Keys and values in Ray's control store."""

    def get(self, key: str) -> str | None:
        """The value; None: there is none."""

    def put(self, key: str, value: str) -> str:
        """Store a value unless there is one; the value that is there then."""

    def remove(self, prefix: str) -> None:
        """Remove all keys that begin so."""


class RayNode(NamedTuple):
    """A live node of Ray."""

    id: str
    """Ray's own id, in hex; a raylet that starts again has another."""
    name: str
    """`ray start --node-name`; without it the address."""
    host: str
    total: Mapping[str, float]
    """Resource -> amount, in Ray's words: CPU, GPU, memory (bytes)."""
    others: Mapping[str, float]
    """The part of it that other jobs of the cluster hold."""
    labels: Mapping[str, str]
    deadline: int | None = None
    """Unix time in ms at which a drained node goes; 0: as soon as it is idle; None: not drained."""


class PendingNode(NamedTuple):
    """A node that Ray's autoscaler has ordered."""

    id: str
    kind: str
    """The node's type in the autoscaler's configuration."""
    status: str
    total: Mapping[str, float] = {}


class Snapshot(NamedTuple):
    """The cluster as it is now."""

    nodes: tuple[RayNode, ...]
    pending: tuple[PendingNode, ...] = ()


class Order(NamedTuple):
    """A worker to be started."""

    worker: str
    run: str
    node: str
    """Ray's id of the node."""
    node_name: str
    config: str
    """The agent's configuration, JSON; the node fills in the paths."""
    environment: str
    ca: str | None
    cpus: float
    gpus: int
    memory: int
    runtime_env: Mapping[str, object]
    directory: str
    """Directory on the node below which workers have theirs; empty: its temporary directory."""
    command: tuple[str, ...] = ()
    """Command that takes the path of a configuration; empty: the agent, by the node's Python."""


class RayFailedError(Exception):
    """A refusal that the driver's process sends instead of an answer."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message, final)
        self.message = message
        self.final = final
        """True if no other try helps."""

    def __reduce__(self) -> tuple[object, ...]:
        return _failure, (self.message, self.final)


def _failure(message: str, final: bool) -> RayFailedError:
    return RayFailedError(message, final=final)
