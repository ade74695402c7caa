"""Nodes: the inventory of the cluster, cordons, drains, and maintenance."""

from __future__ import annotations

import datetime as dt

from orchestrator.core.attempts import draining
from orchestrator.core.messages.events import CapacityChanged, NodeChanged, NodeInfo
from orchestrator.core.model.entities import Node
from orchestrator.core.model.records import CLUSTER, MAINTENANCE, Cordon, Window
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import node_checks
from orchestrator.core.requests import node_health
from orchestrator.core.supervision import node_findings
from orchestrator.core.turn import Turn
from orchestrator.errors import NotFoundError

_LEFT = "no longer in the cluster; "
"""Prefix of the reason of a cordon that holds again if the node comes back."""


def on_capacity(turn: Turn, event: CapacityChanged) -> None:
    """Take over the inventory of the cluster. The faults and the cordon of a known node stay."""
    for info in event.nodes:
        known = turn.state.nodes.get(info.id)
        if known is None:
            turn.put(_node(info, turn.now))
        elif known.state is NodeState.GONE:
            _back(turn, known, info)
        elif any(getattr(known, field) != value for field, value in _shape(info).items()):
            turn.change_node(info.id, **_shape(info))
    present = {info.id for info in event.nodes}
    for node in list(turn.state.nodes.values()):
        if node.id not in present and node.state is not NodeState.GONE:
            turn.change_node(node.id, state=NodeState.GONE, reason=_left(node.by, node.reason))
    reasons = {info.id: info.reason for info in event.nodes}
    for leaving in node_health.follow(turn, event.nodes):
        before = node_health.before_draining(turn.state.nodes[leaving])
        draining.drain(turn, leaving, reason=reasons[leaving], by=CLUSTER, cordon=before)
    node_findings.sweep(turn)
    turn.schedule_wanted = True


def _back(turn: Turn, node: Node, info: NodeInfo) -> None:
    """A node that left while it was cordoned or drained is cordoned: it may have been repaired."""
    state = NodeState.CORDONED if node.by else NodeState.READY
    why = node.reason.removeprefix(_LEFT) if node.by else "back in the cluster"
    turn.change_node(node.id, state=state, reason=why, **_shape(info))
    maintain(turn, node.id)


def _left(by: str, reason: str) -> str:
    return f"{_LEFT}{reason}" if by else "no longer in the cluster"


def _shape(info: NodeInfo) -> dict[str, object]:
    return {
        "gpus": info.gpus,
        "cpus": info.cpus,
        "memory": info.memory,
        "host": info.host,
        "labels": dict(info.labels),
        "used_by_others": info.used_by_others,
    }


def _node(info: NodeInfo, now: dt.datetime) -> Node:
    return Node(
        id=info.id,
        gpus=info.gpus,
        cpus=info.cpus,
        memory=info.memory,
        host=info.host,
        labels=dict(info.labels),
        used_by_others=info.used_by_others,
        since=now,
    )


def on_node_changed(turn: Turn, event: NodeChanged) -> None:
    """Cordon a node, drain it (its runs may save before they move), or let it take work again.

    Raises:
        NotFoundError: There is no such node.
    """
    node = turn.state.nodes.get(event.node)
    if node is None or node.state is NodeState.GONE:
        have = ", ".join(
            sorted(n.id for n in turn.state.nodes.values() if n.state is not NodeState.GONE)
        )
        raise NotFoundError(f"no such node: {event.node}; the cluster has {have or 'no nodes'}")
    turn.schedule_wanted = True
    if event.state == "ready":
        node_findings.taken_back(turn, node.id, event.actor)
        node_checks.resolve(turn, node.id, f"{event.actor} took the node back")
        node = turn.state.nodes[node.id]
    if event.state == "draining":
        draining.drain(turn, node.id, reason=event.reason, by=event.actor)
        return
    ready = event.state == "ready"
    by = "" if ready else event.actor
    # Taking a node back into service during its maintenance ends that maintenance.
    planned = [w for w in node.maintenance if not ready or w.begins > turn.now]
    turn.change_node(
        node.id,
        state=NodeState(event.state),
        reason=event.reason,
        by=by,
        cordon=None,
        maintenance=tuple(planned),
        absences=() if ready else node.absences,
    )


def maintain(turn: Turn, node_id: str) -> None:
    """Keep a node drained while a maintenance window is open; then restore its earlier state.

    A node that a person drains, or that is gone, is left alone. A cordon is remembered. An action
    for its machine's word that nobody answered starts.
    """
    node_findings.act_unanswered(turn, node_id)
    node = turn.state.nodes[node_id]
    planned = tuple(window for window in node.maintenance if window.ends > turn.now)
    if planned != node.maintenance:
        node = turn.change_node(node_id, maintenance=planned)
    open_now = [window for window in planned if window.begins <= turn.now]
    if open_now:
        _keep_away(turn, node, max(open_now, key=lambda window: window.ends))
    elif node.by == MAINTENANCE:
        _give_back(turn, node)
    turn.schedule_wanted = True


def _keep_away(turn: Turn, node: Node, window: Window) -> None:
    reason = f"maintenance until {window.ends:%Y-%m-%d %H:%M} UTC: {window.reason}"
    if node.state is NodeState.GONE:
        return
    if node.by == MAINTENANCE:
        turn.change_node(node.id, reason=reason)
    elif node.state is not NodeState.DRAINING:
        cordoned = node.state is NodeState.CORDONED
        before = Cordon(reason=node.reason, by=node.by) if cordoned else None
        draining.drain(turn, node.id, reason=reason, by=MAINTENANCE, cordon=before)


def _give_back(turn: Turn, node: Node) -> None:
    """End the maintenance of a node: its cordon holds again, or it takes work."""
    before = node.cordon or Cordon(reason="maintenance is over", by="")
    state, reason = NodeState.CORDONED if node.cordon else NodeState.READY, before.reason
    if node.state is NodeState.GONE:
        state, reason = NodeState.GONE, _left(before.by, reason)
    turn.change_node(node.id, state=state, reason=reason, by=before.by, cordon=None)
