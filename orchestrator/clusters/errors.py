"""What can go wrong with a cluster."""

from __future__ import annotations

from orchestrator.errors import BabysitError


class ClusterError(BabysitError):
    """A worker cannot be started here as things are. Says why and what to do.

    Attributes:
        node: The node it was for; empty when it is the cluster as a whole.
        worker: The worker it was for; empty when it is none.
    """

    def __init__(self, message: str, *, node: str = "", worker: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.worker = worker
