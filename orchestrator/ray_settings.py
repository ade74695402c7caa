"""Settings of the Ray cluster, a part of :class:`orchestrator.settings.Settings`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from orchestrator.kubernetes_settings import items, levels

_ADDRESS = re.compile(r"[^\s/]+:\d+|auto")
_INSTEAD = (
    "give HOST:PORT of the head's control store, which `ray start` prints (mostly port 6379), and"
    " run the server on a node of the Ray cluster: on the head, as a Ray job, or on a machine that"
    " has joined by `ray start --address=HOST:PORT --num-cpus=0`"
)


def check_address(address: str) -> str:
    """The address, which is one of Ray's control store (GCS), or empty.

    Raises:
        ValueError: It is of something else.
    """
    if address.startswith("ray://"):
        raise ValueError(
            f"{address} is an address of Ray Client, which does not tell of actors and nodes that"
            f" die: {_INSTEAD}"
        )
    if address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is the address of Ray's dashboard: {_INSTEAD}")
    if address and not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is not the address of a Ray cluster: {_INSTEAD}")
    return address


class RaySettings(BaseSettings):
    """Where the Ray cluster is, and what the actors of workers get."""

    ray_address: str = Field(
        default="",
        description="HOST:PORT of the Ray cluster's head (its GCS), as `ray start` prints it. A "
        "Ray node has to run on the server's machine: the head, or one without CPUs. Empty: "
        "RAY_ADDRESS (set inside a Ray job), or the cluster of this machine.",
    )
    ray_namespace: str = Field(
        default="babysit",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$",
        description="Ray namespace of the actors of workers. Two control planes that share a Ray "
        "cluster need two.",
    )
    ray_topology: str = Field(
        default="zone=ray.io/availability-zone",
        description="Labels of Ray nodes that say where a node is, as LEVEL=LABEL with commas "
        "between them; levels are `zone`, `spine`, `rack` and `nvlink`. Labels without a `/` "
        "keep their names.",
    )
    ray_nodes: str = Field(
        default="",
        description="Labels that a Ray node must have to be used, as LABEL=VALUE with commas "
        "between them. Empty: every node with CPUs or GPUs.",
    )
    ray_runtime_env: dict[str, Any] = Field(
        default={},
        description="Ray's runtime environment of all workers, as JSON, such as "
        '`{"pip": ["babysit"]}`; keys of `ray.runtime_env` in a spec win.',
    )
    ray_directory: str = Field(
        default="",
        pattern=r"^(/.*)?$",
        description="Directory on the Ray nodes for the code, logs and spools of workers while "
        "they live. Empty: the node's temporary directory.",
    )

    @field_validator("ray_address")
    @classmethod
    def _address_of_ray(cls, value: str) -> str:
        return check_address(value)

    @field_validator("ray_topology")
    @classmethod
    def _levels_of_ray(cls, value: str) -> str:
        levels(value)
        return value

    @field_validator("ray_nodes")
    @classmethod
    def _labels(cls, value: str) -> str:
        for part in items(value):
            if not all(part.partition("=")):
                raise ValueError(f"{part}: expected LABEL=VALUE")
        return value

    @property
    def ray_levels(self) -> dict[str, str]:
        """Level -> label of Ray."""
        return levels(self.ray_topology)

    @property
    def ray_labels(self) -> dict[str, str]:
        """Labels of the nodes that are used."""
        parts = (part.partition("=") for part in items(self.ray_nodes))
        return {label: value for label, _, value in parts}
