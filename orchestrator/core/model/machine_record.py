"""The record that a node carries: failures held against it, and findings of its own machine."""

from __future__ import annotations

import dataclasses
import datetime as dt

from monitors.failures import FailureClass
from monitors.hardware.types import NodeAction
from monitors.types import Severity


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A failure on the record of a node."""

    at: dt.datetime
    run: str
    """Empty: its machine told of it, and no run had failed."""
    failure_class: FailureClass
    acquitted: bool = False
    """The failure followed its run to another node. The breaker still counts it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A finding of a node's own machine, as it was taken."""

    at: dt.datetime
    """When it was seen, never later than when the core heard of it."""
    rule: str
    device: str
    action: NodeAction
    """That followed, or would have without a hold: `record` while it is not corroborated."""
    severity: Severity
    failure_class: FailureClass
    reason: str
    runs: tuple[str, ...] = ()
    """Runs with a worker on the node at that time."""
    acted: bool = False
    """The node was taken away for it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A node as its own machine tells of it."""

    sightings: tuple[Sighting, ...] = ()
    """Newest last; at most 20 are kept."""
    taken: tuple[dt.datetime, ...] = ()
    """When it was taken away for what its machine said, the newest last, at most 10; an operator
    who takes it back begins anew."""
    never_use: bool = False
    """True: only an operator takes it back."""
    ask_at: dt.datetime | None = None
    """When an action that people were asked about starts by itself."""
