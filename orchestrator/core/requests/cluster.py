"""Requests about the cluster: quotas of queues, spares, and the maintenance of nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from orchestrator.core.messages.events import (
    MaintenanceCancelled,
    MaintenanceDue,
    MaintenancePlanned,
    QueueChanged,
    QueueRemoved,
    SparesChanged,
)
from orchestrator.core.model.entities import Node, Queue
from orchestrator.core.model.records import Window
from orchestrator.core.model.states import NodeState
from orchestrator.core.requests import nodes as node_requests
from orchestrator.core.text import named
from orchestrator.core.turn import Turn
from orchestrator.errors import ConflictError, InvalidError, NotFoundError

DEFAULT_QUEUE = "default"
"""Always there; runs that name no queue wait in it."""


def on_queue_changed(turn: Turn, event: QueueChanged) -> None:
    """Set a quota. Runs keep their nodes: a queue above its quota gets nothing more, or gives back.

    Raises:
        InvalidError: A cohort without a name or a quota, or limits without a cohort.
    """
    quota = event.quota
    if quota.cohort is not None and not quota.cohort.strip():
        raise InvalidError(f"queue {quota.name}: expected the name of a cohort, or `--cohort none`")
    if quota.cohort is None and (quota.borrowing_limit or quota.lending_limit):
        raise InvalidError(
            f"queue {quota.name}: borrowing and lending need a cohort: add --cohort NAME"
        )
    if quota.gpus is None and quota.cohort is not None:
        raise InvalidError(
            f"queue {quota.name} is in the cohort {quota.cohort}, so it needs a quota:"
            " add --gpus N, or leave the cohort with --cohort none"
        )
    if not all(0 < weight < math.inf for weight in quota.weights.values()):
        raise InvalidError(f"queue {quota.name}: expected weights above 0, and finite")
    known = turn.state.queues.get(quota.name) or Queue(name=quota.name)
    turn.put(dataclasses.replace(known, **dataclasses.asdict(quota)))
    turn.schedule_wanted = True


def on_queue_removed(turn: Turn, event: QueueRemoved) -> None:
    """Remove a queue. Runs that ended in it keep its name.

    Raises:
        NotFoundError: There is no such queue.
        ConflictError: A live run uses the queue, or it is the default queue.
    """
    known, users = turn.state.queues.get(event.queue), turn.state.live_runs()
    if event.queue == DEFAULT_QUEUE:
        raise ConflictError(f"the queue {DEFAULT_QUEUE} cannot be removed: runs need one")
    using = [run.name for run in users if run.spec.queue == event.queue]
    if using:
        raise ConflictError(
            f"queue {event.queue} is used by {named(using)}: cancel these runs, or wait for them"
        )
    if known is None:
        raise NotFoundError(f"no queue {event.queue}; see `babysit queues ls`")
    turn.put(dataclasses.replace(known, removed=True))
    turn.schedule_wanted = True


def on_spares_changed(turn: Turn, event: SparesChanged) -> None:
    """Set the pool of spares."""
    turn.put(dataclasses.replace(turn.state.fleet, spares=event.spares))
    turn.schedule_wanted = True


def on_maintenance_planned(turn: Turn, event: MaintenancePlanned) -> None:
    """Plan a window: no run starts on the nodes that would still run when it begins.

    When the window begins, the nodes are drained.
    """
    if event.ends <= event.begins or event.ends <= turn.now:
        raise InvalidError(
            f"maintenance from {event.begins:%Y-%m-%d %H:%M} to {event.ends:%Y-%m-%d %H:%M} UTC:"
            " expected an end after the begin, and in the future"
        )
    window = Window(begins=event.begins, ends=event.ends, reason=event.reason, by=event.actor)
    for node in _known(turn, event.nodes):
        others = [w for w in node.maintenance if (w.begins, w.ends) != (window.begins, window.ends)]
        planned = sorted((*others, window), key=lambda w: (w.begins, w.ends))
        turn.change_node(node.id, maintenance=tuple(planned))
    turn.schedule_wanted = True


def on_maintenance_cancelled(turn: Turn, event: MaintenanceCancelled) -> None:
    """Cancel all windows of the nodes; a node in maintenance takes work again."""
    for node in _known(turn, event.nodes):
        turn.change_node(node.id, maintenance=())
        node_requests.maintain(turn, node.id)


def on_maintenance_due(turn: Turn, event: MaintenanceDue) -> None:
    """Drain a node whose window begins; restore the earlier state of a node whose window ended."""
    if event.node in turn.state.nodes:
        node_requests.maintain(turn, event.node)


def _known(turn: Turn, names: Iterable[str]) -> list[Node]:
    """All nodes by name.

    Raises:
        NotFoundError: One of them does not exist.
    """
    found = [turn.state.nodes.get(name) for name in names]
    missing = [
        name
        for name, node in zip(names, found, strict=True)
        if node is None or node.state is NodeState.GONE
    ]
    if missing:
        raise NotFoundError(f"no such node: {', '.join(missing)}; see `babysit nodes ls`")
    return [node for node in found if node is not None]
