"""The error of clusters."""

from __future__ import annotations

from orchestrator.errors import BabysitError


class ClusterError(BabysitError):
    """The cluster cannot do what it was asked for now; a later try may succeed.

    The message says why and what to do. It says nothing about an effect: a launch that raised may
    have started the agent.

    Attributes:
        node: Node concerned; empty if the error concerns the whole cluster.
        worker: Worker concerned; empty if the error concerns none.
    """

    def __init__(self, message: str, *, node: str = "", worker: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.worker = worker
