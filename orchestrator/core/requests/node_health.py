"""Follows the cluster's own word about a node: not ready, cordoned by others, about to go.

The core keeps away from such a node, and takes it back by itself when the cluster does. A node that
comes and goes is not taken back for ever: each time costs its runs a restart.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from monitors.types import Severity
from orchestrator.core.messages.events import NodeInfo
from orchestrator.core.model.entities import Node
from orchestrator.core.model.records import CLUSTER, FLAPPING, MAINTENANCE, Cordon
from orchestrator.core.model.states import NodeState
from orchestrator.core.turn import Turn

FLAPS = 3
"""Times that a node is taken back by itself within `FLAP_WINDOW`."""
FLAP_WINDOW = dt.timedelta(hours=24)
TOGETHER_NODES, TOGETHER_SHARE = 3, 0.10
"""Nodes of which the cluster says so at once, and their share of all, from which on it is the
cluster's trouble and no node's: as for the breaker."""


def follow(turn: Turn, inventory: Sequence[NodeInfo]) -> list[str]:
    """Take over what the cluster says about its nodes. Nodes without news keep their state.

    Returns:
        The nodes that are to be drained: those that are about to go.
    """
    away = [info for info in inventory if _leaves(turn.state.nodes[info.id], info)]
    together = len(away) > max(TOGETHER_NODES, TOGETHER_SHARE * len(inventory))
    for info in inventory:
        node = turn.state.nodes[info.id]
        if node.state is NodeState.GONE or node.by == MAINTENANCE:
            continue  # its end looks again
        if info.state == "ready":
            _take_back(turn, node)
        elif info.state == "cordoned":
            _keep_away(turn, node, info, counts=not together)
    return [info.id for info in inventory if _is_to_drain(turn.state.nodes[info.id], info)]


def _leaves(node: Node, info: NodeInfo) -> bool:
    return info.state != "ready" and node.state is NodeState.READY


def _is_to_drain(node: Node, info: NodeInfo) -> bool:
    return info.state == "draining" and node.state in {NodeState.READY, NodeState.CORDONED}


def _keep_away(turn: Turn, node: Node, info: NodeInfo, *, counts: bool) -> None:
    """Cordon a node that takes work; what somebody else has done to it stays."""
    if node.state is NodeState.READY:
        lately = [each for each in node.absences if turn.now - each < FLAP_WINDOW]
        turn.change_node(
            node.id,
            state=NodeState.CORDONED,
            reason=info.reason,
            by=CLUSTER,
            absences=(*lately, turn.now) if counts else tuple(lately),
        )
    elif node.by == CLUSTER and (node.state, node.reason) != (NodeState.CORDONED, info.reason):
        turn.change_node(node.id, state=NodeState.CORDONED, reason=info.reason)


def _take_back(turn: Turn, node: Node) -> None:
    """Let a node take work again that the cluster kept away; an older cordon of others holds."""
    if node.by != CLUSTER:
        return
    if node.cordon is not None:
        before = node.cordon
        turn.change_node(
            node.id, state=NodeState.CORDONED, reason=before.reason, by=before.by, cordon=None
        )
        return
    lately = [each for each in node.absences if turn.now - each < FLAP_WINDOW]
    if len(lately) > FLAPS:
        why = f"flapping: {len(lately)} times within 24 h the cluster took it away, last for"
        why = f"{why} {node.reason}; `babysit nodes uncordon {node.id}` when it is repaired"
        turn.change_node(node.id, state=NodeState.CORDONED, reason=why, by=FLAPPING)
        turn.notify(
            None, Severity.WARNING, f"{node.id} stays cordoned: {why}", kind="node_flapping"
        )
        return
    back = f"taken back: no more {node.reason}"
    turn.change_node(node.id, state=NodeState.READY, reason=back, by="")


def before_draining(node: Node) -> Cordon | None:
    """The cordon of somebody else that holds again if the node stays after all."""
    if node.state is not NodeState.CORDONED or node.by == CLUSTER:
        return None
    return Cordon(reason=node.reason, by=node.by)
