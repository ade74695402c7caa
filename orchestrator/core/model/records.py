"""Small things that entities bear. Times are UTC."""

from __future__ import annotations

import dataclasses
import datetime as dt

from monitors.types import Pace


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A time in which a node is not to be used: it is drained when it begins."""

    begins: dt.datetime
    ends: dt.datetime
    reason: str
    by: str = ""


MAINTENANCE = "maintenance"
"""The actor that drains a node whose maintenance window has begun."""
CLUSTER = "cluster"
"""The actor of what the cluster itself says about a node: not ready, about to go."""
HARDWARE = "hardware"
"""The actor that keeps away a node whose machine says that something is wrong with it."""
FLAPPING = "flapping"
"""The actor that keeps a node cordoned which the cluster has taken away too often."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """Why a node takes no new work, and who says so."""

    reason: str
    by: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """How it went for a run of a queue: what estimates are made from."""

    name: str
    project: str
    nodes: int
    waited_seconds: float
    """From submission to its first nodes."""
    ran_seconds: float
    """From then to its end."""
    pace: Pace = dataclasses.field(default_factory=Pace)
    run: str = ""
    """Id of the run; empty for runs of older versions."""
    program: str = ""
    """The script or module that it ran."""
    died_of: str = ""
    """Signature of the error of its own that ended it; empty: none did."""
    skip_batches: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The usage of a project, decayed to a moment."""

    gpu_seconds: float
    at: dt.datetime
