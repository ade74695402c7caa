"""The error of clusters."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import BabysitError

_NAMED = 20
"""Nodes that the message about an unknown one names."""


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


def unknown_node(node: str, worker: str, there: Sequence[str]) -> ClusterError:
    """The error of a launch on a node that the cluster does not have, with the names it has."""
    more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
    names = ", ".join(there[:_NAMED]) or "no node"
    message = f"unknown node {node}; this cluster has {names}{more}"
    return ClusterError(message, node=node, worker=worker)
