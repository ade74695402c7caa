"""Follows the cluster's own word about a node: not ready, cordoned by others, about to go.

The core keeps away from such a node, and takes it back by itself when the cluster does. A node that
comes and goes is not taken back for ever: each time costs its runs a restart.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from orchestrator.core.messages.events import NodeInfo
from orchestrator.core.model.checking import PREFLIGHT, CheckPurpose
from orchestrator.core.model.entities import Node
from orchestrator.core.model.records import CLUSTER, MAINTENANCE, Cordon
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import node_checks
from orchestrator.core.placement.node_checks import FLAP_WINDOW
from orchestrator.core.turn import Turn

TOGETHER_WINDOW = dt.timedelta(minutes=1)
"""The cluster takes nodes away one by one, as their heartbeats are missed: within 15 s or so."""
TOGETHER_NODES, TOGETHER_SHARE = 3, 0.10
"""This many nodes within `TOGETHER_WINDOW`, and more than this share of all, are the cluster's
trouble and no node's: as for the breaker."""


def follow(turn: Turn, inventory: Sequence[NodeInfo]) -> list[str]:
    """Take over what the cluster says about its nodes. Nodes without news keep their state.

    Returns:
        The nodes that are to be drained: those that are about to go.
    """
    for info in inventory:
        node = turn.state.nodes[info.id]
        if node.state is NodeState.GONE:
            continue
        says = "" if info.state == "ready" else info.reason or info.state
        if says != node.says:
            node = turn.change_node(node.id, says=says)
        if node.by == MAINTENANCE:
            _note(turn, node, info)
        elif info.state == "ready":
            _take_back(turn, node)
        elif info.state == "cordoned":
            _keep_away(turn, node, info)
    _forgive(turn, len(inventory))
    return [info.id for info in inventory if _is_to_drain(turn.state.nodes[info.id], info)]


def _is_to_drain(node: Node, info: NodeInfo) -> bool:
    stays = node.state in {NodeState.READY, NodeState.CORDONED} and node.by != MAINTENANCE
    return info.state == "draining" and stays


def _note(turn: Turn, node: Node, info: NodeInfo) -> None:
    """During maintenance: note what holds after it. A cordon of others from before stays."""
    if node.cordon is not None and node.cordon.by != CLUSTER:
        return
    says = None if info.state == "ready" else Cordon(reason=info.reason, by=CLUSTER)
    if node.cordon != says:
        turn.change_node(node.id, cordon=says)


def _keep_away(turn: Turn, node: Node, info: NodeInfo) -> None:
    """Cordon a node that takes work; what somebody else has done to it stays."""
    if node.state is NodeState.READY:
        lately = [each for each in node.absences if turn.now - each < FLAP_WINDOW]
        turn.change_node(
            node.id,
            state=NodeState.CORDONED,
            reason=info.reason,
            by=CLUSTER,
            absences=(*lately, turn.now),
        )
    elif node.by == CLUSTER and (node.state, node.reason) != (NodeState.CORDONED, info.reason):
        turn.change_node(node.id, state=NodeState.CORDONED, reason=info.reason)


def _take_back(turn: Turn, node: Node) -> None:
    """Let a node take work again that the cluster kept away, once it passes a check."""
    if node.by != CLUSTER:
        return
    why = f"no more {node.reason}"
    if node.cordon is None and node_checks.must_pass(turn, node):
        node = turn.change_node(
            node.id, state=NodeState.CORDONED, reason=f"{why}; it is checked first", by=PREFLIGHT
        )
        node_checks.start(turn, node, CheckPurpose.RETURN)
        return
    node_checks.take_back(turn, node, why)


def _forgive(turn: Turn, count: int) -> None:
    """Hold it against no node that it was taken away together with others."""
    since = turn.now - TOGETHER_WINDOW
    away = [
        node
        for node in turn.state.nodes.values()
        if node.by == CLUSTER and node.left_at is not None and node.left_at > since
    ]
    if len(away) < max(TOGETHER_NODES, int(TOGETHER_SHARE * count) + 1):
        return
    for node in away:
        own = tuple(each for each in node.absences if each <= since)
        if own != node.absences:
            turn.change_node(node.id, absences=own)


def before_draining(node: Node) -> Cordon | None:
    """The cordon of somebody else that holds again if the node stays after all."""
    if node.state is not NodeState.CORDONED or node.by == CLUSTER:
        return None
    return Cordon(reason=node.reason, by=node.by)
