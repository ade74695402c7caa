"""Nodes: those that come and go, and those that people cordon and drain."""

from __future__ import annotations

import dataclasses
import datetime as dt

from orchestrator.core import leaving, placing
from orchestrator.core.entities import Node
from orchestrator.core.events import CapacityChanged, NodeChanged, NodeInfo
from orchestrator.core.states import NodeState
from orchestrator.core.turn import Turn
from orchestrator.errors import NotFoundError


def on_capacity(turn: Turn, event: CapacityChanged) -> None:
    """Take the cluster's inventory over; what is known of a node's past and its cordon stays."""
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
            why = f"no longer in the cluster; {node.reason}" if node.by else "no longer there"
            turn.change_node(node.id, state=NodeState.GONE, reason=why)
    turn.schedule_wanted = True


def _back(turn: Turn, node: Node, info: NodeInfo) -> None:
    """A node that was cordoned (or drained) when it left takes no work before someone says so."""
    if node.by:
        why = node.reason.removeprefix("no longer in the cluster; ")
        turn.change_node(node.id, state=NodeState.CORDONED, reason=why, **_shape(info))
    else:
        turn.change_node(
            node.id, state=NodeState.READY, reason="back in the cluster", **_shape(info)
        )


def _shape(info: NodeInfo) -> dict[str, object]:
    return {
        "gpus": info.gpus,
        "cpus": info.cpus,
        "memory": info.memory,
        "labels": dict(info.labels),
    }


def _node(info: NodeInfo, now: dt.datetime) -> Node:
    return Node(
        id=info.id,
        gpus=info.gpus,
        cpus=info.cpus,
        memory=info.memory,
        labels=dict(info.labels),
        since=now,
    )


def on_node_changed(turn: Turn, event: NodeChanged) -> None:
    """Cordon: no new work. Drain: its runs move away (they may save first).

    Ready: takes work again.
    """
    node = turn.state.nodes.get(event.node)
    if node is None or node.state is NodeState.GONE:
        have = ", ".join(
            sorted(n.id for n in turn.state.nodes.values() if n.state is not NodeState.GONE)
        )
        raise NotFoundError(f"no such node: {event.node}; the cluster has {have or 'no nodes'}")
    turn.schedule_wanted = True
    if event.state == "draining":
        drain(turn, node.id, event.reason, event.actor)
        return
    ready = event.state == "ready"
    by = "" if ready else event.actor
    # Who takes a node back into service during its maintenance calls the maintenance off.
    planned = [w for w in node.maintenance if not ready or w.begins > turn.now]
    turn.change_node(
        node.id,
        state=NodeState(event.state),
        reason=event.reason,
        by=by,
        maintenance=tuple(planned),
    )


def drain(turn: Turn, node_id: str, reason: str, by: str) -> None:
    """No new work, and its runs move away; they may save first."""
    node = turn.change_node(node_id, state=NodeState.DRAINING, reason=reason, by=by)
    for worker in turn.state.workers_on(node.id):
        _move_away(turn, worker.run, node)


def _move_away(turn: Turn, run_id: str, node: Node) -> None:
    """Under a hold nothing moves: its release looks again."""
    run = turn.run(run_id)
    if turn.held(run_id):
        return
    reason = f"{node.id} is being drained by {node.by}: {node.reason}"
    if leaving.have_no_seat(turn, run_id, (node.id,)):
        placing.end_workers(turn, run_id, (node.id,), reason)
        return
    restart = leaving.asked(turn, run, reason, remedy="move away")
    leaving.ask(turn, run, dataclasses.replace(restart, node=node.id))


def leave_draining(turn: Turn, run_id: str) -> None:
    """A hold has ended: move away from nodes that were drained meanwhile."""
    for worker in turn.state.workers_of(run_id):
        node = turn.state.nodes.get(worker.node)
        if node is not None and node.state is NodeState.DRAINING:
            _move_away(turn, run_id, node)
