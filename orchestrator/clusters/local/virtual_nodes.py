"""The virtual nodes of the local cluster."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jobs.log_files import LogLimit
from monitors.exit_rules import RuleFile
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local import hardware
from orchestrator.core.messages.events import NodeInfo


class LocalClusterSettings(BaseModel):
    """Settings of the local cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    """Holds `runs/` and `server.json`. Two clusters never share one at the same time."""
    ca: Path | None = None
    """PEM file of the authorities that agents trust; None: the system's."""
    nodes: int = Field(default=4, ge=0)
    """Named `node-1`, `node-2` …"""
    cpus_per_node: float | None = Field(default=None, gt=0)
    """None: every node offers all CPUs of this machine, so that no run waits for CPUs."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """None: this machine's GPUs, divided contiguously."""
    memory_per_node: int | None = Field(default=None, gt=0)
    """Bytes. None: not accounted."""
    log_limit: LogLimit = LogLimit()
    """Disk that the log of one rank and attempt may take."""
    log_rules: tuple[RuleFile, ...] = ()
    """Rules for the logs of every run, before babysit's own."""
    labels: dict[str, dict[str, str]] = Field(default_factory=dict)
    """By node: `{"node-1": {"rack": "a"}}`."""
    stop_grace_seconds: float = Field(default=10.0, ge=0)
    """Seconds between SIGINT and SIGKILL when an agent is stopped."""
    agent: tuple[str, ...] = ()
    """Command that takes the path of a config; empty: babysit's agent under this interpreter."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A virtual node and its GPUs."""

    info: NodeInfo
    devices: tuple[str, ...]
    """UUIDs."""


def virtual_nodes(settings: LocalClusterSettings, gpus: tuple[str, ...]) -> Iterator[Node]:
    """Divide this machine into nodes.

    Args:
        settings: Number and size of the nodes.
        gpus: UUIDs of the GPUs of this machine.

    Raises:
        ClusterError: The nodes would need more GPUs than this machine has.
    """
    count, wanted = settings.nodes, settings.gpus_per_node
    if wanted is not None:
        if len(gpus) < wanted * count:
            raise ClusterError(
                f"{count} nodes with {wanted} GPUs each need {wanted * count} GPUs; this machine "
                f"has {len(gpus)}. Configure fewer nodes or fewer GPUs"
            )
        gpus = gpus[: wanted * count]
    hands = hardware.deal(gpus, count) if count else []
    for number, devices in enumerate(hands, 1):
        name = f"node-{number}"
        info = NodeInfo(
            id=name,
            host=platform.node() or "localhost",
            gpus=len(devices),
            cpus=settings.cpus_per_node or hardware.cpus(),
            memory=settings.memory_per_node or 0,
            labels=settings.labels.get(name, {}),
        )
        yield Node(info, devices)
