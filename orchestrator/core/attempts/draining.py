"""Drains: a node takes no new work, and the runs on it move away; they may save first."""

from __future__ import annotations

import dataclasses

from orchestrator.core.attempts import preemption
from orchestrator.core.model.entities import Node
from orchestrator.core.model.records import Cordon
from orchestrator.core.model.states import NodeState
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.placement import workers as worker_placement
from orchestrator.core.turn import Turn


def drain(turn: Turn, node_id: str, *, reason: str, by: str, cordon: Cordon | None = None) -> None:
    """Place no new work on a node, and move its runs away; they may save first.

    `cordon` holds again once the drain is over.
    """
    node = turn.change_node(node_id, state=NodeState.DRAINING, reason=reason, by=by, cordon=cordon)
    for worker in turn.state.workers_on(node.id):
        _move_away(turn, worker.run, node)


def _move_away(turn: Turn, run_id: str, node: Node) -> None:
    """Move a run off a draining node. A held run stays: its release checks again."""
    run = turn.run(run_id)
    if turn.held(run_id):
        return
    reason = f"{node.id} is being drained by {node.by}: {node.reason}"
    if preemption.have_no_seat(turn, run_id, (node.id,)):
        worker_placement.end_workers(turn, run_id, (node.id,), reason)
        return
    restart = preemption.asked(turn, run, reason, remedy=Remedy.MOVE_AWAY)
    preemption.ask(turn, run, dataclasses.replace(restart, node=node.id))


def leave_draining(turn: Turn, run_id: str) -> None:
    """After a hold: move the run away from nodes that were drained in the meantime."""
    for worker in turn.state.workers_of(run_id):
        node = turn.state.nodes.get(worker.node)
        if node is not None and node.state is NodeState.DRAINING:
            _move_away(turn, run_id, node)
