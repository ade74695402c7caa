"""What people set for all runs: quotas of queues, spares, and the maintenance of nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from orchestrator.core.messages.events import (
    MaintenanceCancelled,
    MaintenanceDue,
    MaintenancePlanned,
    QueueChanged,
    SparesChanged,
)
from orchestrator.core.model.entities import Node, Queue
from orchestrator.core.model.records import Window
from orchestrator.core.model.states import NodeState
from orchestrator.core.requests import nodes as node_requests
from orchestrator.core.turn import Turn
from orchestrator.errors import InvalidError, NotFoundError


def on_queue_changed(turn: Turn, event: QueueChanged) -> None:
    """Set a quota. What runs goes on: a queue above it gets nothing more, or gives back."""
    quota = event.quota
    if quota.cohort is not None and not quota.cohort.strip():
        raise InvalidError(f"queue {quota.name}: a cohort has a name; `--cohort none` leaves it")
    if quota.cohort is None and (quota.borrowing_limit or quota.lending_limit):
        raise InvalidError(
            f"queue {quota.name}: only queues of a cohort borrow and lend: give --cohort too"
        )
    if quota.gpus is None and quota.cohort is not None:
        raise InvalidError(f"queue {quota.name}: a queue of a cohort needs a quota: give --gpus")
    if any(weight <= 0 for weight in quota.weights.values()):
        raise InvalidError(f"queue {quota.name}: weights are greater than 0")
    known = turn.state.queues.get(quota.name) or Queue(name=quota.name)
    turn.put(dataclasses.replace(known, **dataclasses.asdict(quota)))
    turn.schedule_wanted = True


def on_spares_changed(turn: Turn, event: SparesChanged) -> None:
    """Set the pool of spares."""
    turn.put(dataclasses.replace(turn.state.fleet, spares=event.spares))
    turn.schedule_wanted = True


def on_maintenance_planned(turn: Turn, event: MaintenancePlanned) -> None:
    """Nothing that would still run then starts on these nodes; when it begins they are drained."""
    if event.ends <= event.begins or event.ends <= turn.now:
        raise InvalidError(
            f"maintenance from {event.begins:%Y-%m-%d %H:%M} to {event.ends:%Y-%m-%d %H:%M} UTC:"
            " expected an end after the beginning, and in the future"
        )
    window = Window(begins=event.begins, ends=event.ends, reason=event.reason, by=event.actor)
    for node in _known(turn, event.nodes):
        others = [w for w in node.maintenance if (w.begins, w.ends) != (window.begins, window.ends)]
        planned = sorted((*others, window), key=lambda w: (w.begins, w.ends))
        turn.change_node(node.id, maintenance=tuple(planned))
    turn.schedule_wanted = True


def on_maintenance_cancelled(turn: Turn, event: MaintenanceCancelled) -> None:
    """Forget what was planned; a node that is being maintained takes work again."""
    for node in _known(turn, event.nodes):
        turn.change_node(node.id, maintenance=())
        node_requests.maintain(turn, node.id)


def on_maintenance_due(turn: Turn, event: MaintenanceDue) -> None:
    """A window begins: the node is drained. It is over: the node is as it was before."""
    if event.node in turn.state.nodes:
        node_requests.maintain(turn, event.node)


def _known(turn: Turn, names: Iterable[str]) -> list[Node]:
    """Nodes by name; all of them, or an error and none."""
    found = [turn.state.nodes.get(name) for name in names]
    missing = [
        name
        for name, node in zip(names, found, strict=True)
        if node is None or node.state is NodeState.GONE
    ]
    if missing:
        raise NotFoundError(f"no such node: {', '.join(missing)}; see `babysit nodes ls`")
    return [node for node in found if node is not None]
