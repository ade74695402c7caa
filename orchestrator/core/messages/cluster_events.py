"""Events of a worker that the cluster is about to end, or that does not start."""

from __future__ import annotations

from typing import Literal

from jobs.events import Event


class WorkerLeaving(Event):
    """The cluster ends a worker that is alive, for a reason of its own; it has time to save."""

    kind: Literal["worker_leaving"] = "worker_leaving"
    run: str
    worker: str
    reason: str
    """In the cluster's words."""


class WorkerStuck(Event):
    """A launched worker does not start, in the cluster's words; empty: it is stuck no longer."""

    kind: Literal["worker_stuck"] = "worker_stuck"
    run: str
    worker: str
    reason: str
    elsewhere: bool = False
    """True if another node may do, and this one does not, as far as the cluster knows."""


class LaunchRefused(Event):
    """A worker cannot be launched with this spec, on whichever node and however often."""

    kind: Literal["launch_refused"] = "launch_refused"
    run: str
    worker: str
    reason: str
    """The error, for people."""
